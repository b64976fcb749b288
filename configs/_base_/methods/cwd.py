# L = L_task + feature * L_feature + logit * L_logit, with the published weights. CIRKD uses 5 and 0.3 for SegFormer.
distill = dict(type="cwd", feature=50.0, logit=3.0, pairs=[("head", "head")], temperature=4.0)
