# SegFormer-B4 alone on Cityscapes: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/student_b4.py",
    "../_base_/schedules/segformer.py",
]
data = dict(crop_size=(1024, 1024), photometric=True, cat_max_ratio=0.75)
