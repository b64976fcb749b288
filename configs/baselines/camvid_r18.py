# DeepLabV3-ResNet-18 alone on CamVid: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/student_r18.py",
    "../_base_/schedules/hmkd_camvid.py",
]
