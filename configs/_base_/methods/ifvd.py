# L = L_task + weight * L_ifvd: the weight of the authors' code, beside pixel-wise distillation (compose with "kd").
# It dominates, at small crops as at large ones (measured: a gradient of 245 on the student against the task's 8.5).
# CIRKD's comparison has 20.
distill = dict(type="ifvd", weight=200.0, pairs=[("head", "head")])
