# L = L_task + weight * mean (W S - T)^2, with the weight of CIRKD's recipe, which also uses kd with weight 1.
distill = dict(type="fitnet", weight=10.0, pairs=[("head", "head")])
