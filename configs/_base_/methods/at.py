# L = L_task + weight * mean (a(S) - a(T))^2: the weight of CIRKD's recipe, which adds kd at 1.
distill = dict(type="at", weight=10000.0, pairs=[("head", "head")])
