# SegFormer-B0 alone, from random weights.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/student_b0.py",
    "../_base_/schedules/camvid_cpu.py",
]
data = dict(crop_size=(160, 224), scale_range=(0.3, 0.9), workers=2)
student = dict(pretrained=None, drop_path=0.0)
optimizer = dict(type="adamw", lr=1e-3, head_lr_mult=2.0, weight_decay=0.01, decay_norm_bias=False)
