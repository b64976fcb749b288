# The schedule of CIRKD v1 (github.com/winycg/CIRKD) for CNN students on Cityscapes. The networks differ: CIRKD's have a
# deep stem and BGR images minus the mean; ours are torchvision's ResNets with ImageNet mean and std.
protocol = "cirkd_v1_schedule"
optimizer = dict(type="sgd", lr=0.02, momentum=0.9, weight_decay=1e-4)
schedule = dict(type="poly", max_iters=40000, power=0.9)
train = dict(batch_size=16, precision="bf16", aux_weight=0.4)
eval = dict(interval=800, mode="whole")
checkpoint = dict(interval=800, keep=3)
log = dict(interval=50, grad_norm_interval=1000)
