# L = L_task + weight * mean (W S - T)^2: the weight of CIRKD's recipe, which adds kd at 1.
distill = dict(type="fitnet", weight=10.0, pairs=[("head", "head")])
