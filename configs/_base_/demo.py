# The quick start: python scripts/make_synthetic.py --out data/synthetic --train 200 --val 40 --size 96 128
data = dict(type="camvid", root="data/synthetic", crop_size=(96, 128), scale_range=(0.75, 1.5), workers=0)
train = dict(batch_size=8, precision="bf16")
eval = dict(interval=100)
checkpoint = dict(interval=100, keep=1)
log = dict(interval=20, grad_norm_interval=100)
