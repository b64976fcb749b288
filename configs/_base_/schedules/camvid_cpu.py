# The real CamVid on a CPU: images at half size (data.scale_range, eval.scales) and short schedules.
protocol = "camvid_cpu"
schedule = dict(type="poly", max_iters=800, power=0.9, warmup_iters=50)
train = dict(batch_size=8, precision="bf16", aux_weight=0.4)
eval = dict(interval=200, mode="whole", scales=(0.5,))
checkpoint = dict(interval=200, keep=1)
log = dict(interval=50, grad_norm_interval=200)
