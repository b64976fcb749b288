# HMKD's script for CamVid: 80k iterations, batch 8, SGD.
protocol = "hmkd_camvid"
optimizer = dict(type="sgd", lr=0.002, momentum=0.9, weight_decay=1e-4)
schedule = dict(type="poly", max_iters=80000, power=0.9)
train = dict(batch_size=8, precision="bf16", aux_weight=0.4)
eval = dict(interval=800, mode="whole")
checkpoint = dict(interval=800, keep=3)
log = dict(interval=50, grad_norm_interval=1000)
