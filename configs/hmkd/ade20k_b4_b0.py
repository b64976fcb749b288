# SegFormer-B4 -> SegFormer-B0 on ADE20K by dual alignment. SegFormer's recipe first resizes the
# shorter side of an image to 512; here images keep their size, in training and in evaluation.
_base_ = [
    "../_base_/datasets/ade20k.py",
    "../_base_/models/teacher_b4.py",
    "../_base_/models/student_b0.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/segformer.py",
]
protocol = "segformer_ade20k"
teacher = dict(weights="hf:nvidia/segformer-b4-finetuned-ade-512-512")  # for non-commercial use
data = dict(photometric=True, cat_max_ratio=0.75)
train = dict(batch_size=16)
eval = dict(mode="whole", crop_size=None, stride=None)
