# L = L_task + weight * mean (a(S) - a(T))^2: the weight of CIRKD's recipe, which adds kd at 1.
# It suits crops of 512 x 1024 and should shrink with the number of cells: at small crops it dominates (seen: a
# gradient of 46 on the student against the task's 1.9).
distill = dict(type="at", weight=10000.0, pairs=[("head", "head")])
