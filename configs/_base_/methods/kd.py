# L = L_task + weight * L_kd: pixel-wise distillation with the weight of CIRKD (CVPR 2022).
distill = dict(type="kd", weight=1.0, temperature=1.0)
