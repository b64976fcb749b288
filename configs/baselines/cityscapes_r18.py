# DeepLabV3-ResNet-18 alone on Cityscapes: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/student_r18.py",
    "../_base_/schedules/cirkd_v1.py",
]
