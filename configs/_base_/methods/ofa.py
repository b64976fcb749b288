# L = L_task + stage * L_stage + logit * L_logit: weights of 1 in the authors' code, which sums the four stages.
distill = dict(type="ofa", stage=4.0, logit=1.0, eps=1.5, stages=["stage1", "stage2", "stage3", "stage4"])
