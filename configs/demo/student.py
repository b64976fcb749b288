# The quick start's student alone: SegFormer-B0 on the synthetic streets, from random weights.
_base_ = ["../_base_/demo.py"]
student = dict(backbone="mit_b0", head="segformer", width=128)
optimizer = dict(type="adamw", lr=5e-4, head_lr_mult=2.0, weight_decay=0.01, decay_norm_bias=False)
schedule = dict(max_iters=400, power=1.0, warmup_iters=50)
