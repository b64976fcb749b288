# L = L_task + weight * L_self_training: without a teacher network, set also teacher=dict(weights="ema") and train.ema.
distill = dict(type="self_training", weight=1.0, threshold=0.95)
