# DeepLabV3-ResNet-18 -> SegFormer-B0 from random weights at full size: every 8th label, and all 367 images.
_base_ = ["../camvid_gain/b0_few/hmkd.py"]
data = dict(unlabelled="train/*", packed=None, crop_size=(360, 480), scale_range=(0.5, 2.0), workers=3)
teacher = dict(weights="work_dirs/camvid_gpu/teacher/student.safetensors")
eval = dict(interval=10000, scales=(1.0,))
