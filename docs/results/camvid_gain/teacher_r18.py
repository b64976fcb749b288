# The teacher: DeepLabV3-ResNet-18 on all 367 labels, from ImageNet weights, at a larger scale than the students'.
_base_ = ["../../../configs/camvid_cpu/r18.py"]
data = dict(crop_size=(128, 176), scale_range=(0.25, 0.7), photometric=True, workers=0)
schedule = dict(max_iters=5000)
eval = dict(interval=1000, scales=(0.35,))
checkpoint = dict(interval=500, keep=1)
log = dict(interval=100, panel_images=0, grad_norm_interval=0)
