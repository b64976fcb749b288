# DeepLabV3-ResNet-101 alone on COCO-Stuff: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/coco_stuff.py",
    "../_base_/models/student_r101.py",
    "../_base_/schedules/cirkd_v1.py",
]
