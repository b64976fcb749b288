# SegFormer-B4 -> DeepLabV3-ResNet-18 on CamVid by dual alignment.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/teacher_b4.py",
    "../_base_/models/student_r18.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/hmkd_camvid.py",
]
teacher = dict(weights="pretrained/camvid_b4.safetensors")  # trained with configs/baselines/camvid_b4.py
