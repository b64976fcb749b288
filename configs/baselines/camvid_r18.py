# DeepLabV3-ResNet-18 alone on CamVid: a baseline, and a teacher once it is trained.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/student_r18.py",
    "../_base_/schedules/hmkd_camvid.py",
]
