# The quick start's student and recipe; scripts/quickstart.sh makes the images.
data = dict(type="camvid", root="data/few", crop_size=(96, 128), scale_range=(0.75, 1.5), workers=0)
student = dict(backbone="mit_b0", head="segformer", width=128)
optimizer = dict(type="adamw", lr=2e-3, head_lr_mult=2.0, weight_decay=0.01, decay_norm_bias=False)
schedule = dict(max_iters=400, power=1.0, warmup_iters=50)
train = dict(batch_size=8, precision="bf16")
eval = dict(interval=100)
checkpoint = dict(interval=100, keep=1)
log = dict(interval=20, grad_norm_interval=100)
