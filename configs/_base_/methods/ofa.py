# L = L_task + stage * L_stage + logit * L_logit. The authors' code has weights of 1 and adds the four stages.
distill = dict(type="ofa", stage=4.0, logit=1.0, eps=1.5, stages=["stage1", "stage2", "stage3", "stage4"])
