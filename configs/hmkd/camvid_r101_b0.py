# DeepLabV3-ResNet-101 -> SegFormer-B0 on CamVid by dual alignment.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/teacher_r101.py",
    "../_base_/models/student_b0.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/segformer_camvid.py",
]
teacher = dict(weights="pretrained/camvid_r101.safetensors")  # trained with configs/baselines/camvid_r101.py
data = dict(photometric=True, cat_max_ratio=0.75)
