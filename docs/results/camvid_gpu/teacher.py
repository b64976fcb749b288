# The teacher: DeepLabV3-ResNet-18 with all 367 labels, from ImageNet weights, at full size.
_base_ = ["../camvid_gain/teacher_r18.py"]
data = dict(crop_size=(360, 480), scale_range=(0.5, 2.0), workers=8)
schedule = dict(max_iters=1500)
eval = dict(interval=1500, scales=(1.0,))
