# SegFormer's optimizer on CamVid, with HMKD's number of iterations.
protocol = "segformer_camvid"
optimizer = dict(type="adamw", lr=6e-5, head_lr_mult=10.0, weight_decay=0.01, decay_norm_bias=False)
schedule = dict(type="poly", max_iters=80000, power=1.0, warmup_iters=1500)
train = dict(batch_size=8, precision="bf16")
eval = dict(interval=800, mode="whole")
checkpoint = dict(interval=800, keep=3)
log = dict(interval=50, grad_norm_interval=1000)
