# SegFormer-B4 -> SegFormer-B0 on CamVid by dual alignment.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/teacher_b4.py",
    "../_base_/models/student_b0.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/segformer_camvid.py",
]
teacher = dict(weights="pretrained/camvid_b4.safetensors")  # trained with configs/baselines/camvid_b4.py
data = dict(photometric=True, cat_max_ratio=0.75)
