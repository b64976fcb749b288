# L = L_task + weight * L_ifvd: the weight of the authors' code, beside pixel-wise distillation (compose with "kd").
# CIRKD's comparison has 20.
distill = dict(type="ifvd", weight=200.0, pairs=[("head", "head")])
