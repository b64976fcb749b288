# SegFormer-B4 alone on PASCAL VOC, with SBD's labels: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/voc.py",
    "../_base_/models/student_b4.py",
    "../_base_/schedules/segformer.py",
]
data = dict(photometric=True, cat_max_ratio=0.75)
eval = dict(mode="whole", crop_size=None, stride=None)
