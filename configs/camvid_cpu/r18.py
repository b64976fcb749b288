# DeepLabV3-ResNet-18 alone, from ImageNet weights: the teacher of the CPU experiments.
_base_ = [
    "../_base_/datasets/camvid.py",
    "../_base_/models/student_r18.py",
    "../_base_/schedules/camvid_cpu.py",
]
data = dict(crop_size=(160, 224), scale_range=(0.3, 0.9), workers=2)
optimizer = dict(type="sgd", lr=0.01, head_lr_mult=2.0, momentum=0.9, weight_decay=5e-4)
