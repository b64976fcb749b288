# L = L_task + weight * L_kd: pixel-wise distillation as CIRKD (CVPR 2022) weighs it.
distill = dict(type="kd", weight=1.0, temperature=1.0)
