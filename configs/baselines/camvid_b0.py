# SegFormer-B0 alone on CamVid: a baseline, and the training of a teacher.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/student_b0.py",
    "../_base_/schedules/segformer_camvid.py",
]
data = dict(photometric=True, cat_max_ratio=0.75)
