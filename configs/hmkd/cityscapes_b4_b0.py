# SegFormer-B4 -> SegFormer-B0 on Cityscapes by dual alignment.
_base_ = [
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/teacher_b4.py",
    "../_base_/models/student_b0.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/segformer.py",
]
teacher = dict(weights="pretrained/cityscapes_b4.safetensors")  # trained with configs/baselines/cityscapes_b4.py
data = dict(crop_size=(1024, 1024), photometric=True, cat_max_ratio=0.75)
