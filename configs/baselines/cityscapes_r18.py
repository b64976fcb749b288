# DeepLabV3-ResNet-18 alone on Cityscapes: a baseline, and a teacher once it is trained.
_base_ = [
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/student_r18.py",
    "../_base_/schedules/cirkd_v1.py",
]
