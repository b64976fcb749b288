# SegFormer-B0 alone from random weights, CamVid at a third of its size: the gate of the study.
_base_ = ["../../../configs/camvid_cpu/b0.py"]
data = dict(crop_size=(96, 128), scale_range=(0.2, 0.5), workers=0)
eval = dict(interval=2000, scales=(0.35,))
checkpoint = dict(interval=2000, keep=1)
log = dict(interval=100, panel_images=0, grad_norm_interval=0)
