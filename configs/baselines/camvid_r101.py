# DeepLabV3-ResNet-101 alone on CamVid: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/student_r101.py",
    "../_base_/schedules/hmkd_camvid.py",
]
