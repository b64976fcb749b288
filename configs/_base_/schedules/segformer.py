# SegFormer's official recipe (Xie et al. 2021, section 4.1).
protocol = "segformer"
optimizer = dict(type="adamw", lr=6e-5, head_lr_mult=10.0, weight_decay=0.01, decay_norm_bias=False)
schedule = dict(type="poly", max_iters=160000, power=1.0, warmup_iters=1500)
train = dict(batch_size=8, precision="bf16")
eval = dict(interval=4000, mode="slide", crop_size=(1024, 1024), stride=(768, 768))
checkpoint = dict(interval=4000, keep=3)
log = dict(interval=50, grad_norm_interval=1000)
