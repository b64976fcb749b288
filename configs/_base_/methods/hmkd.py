# L = L_task + feature * L_feature + logit * L_logit: the student learns the teacher's features in a fixed frame, at
# every stage, and its class distribution. losses/hmkd.py explains every option.
distill = dict(
    type="hmkd", feature=16.0, logit=1.0, target="frame",
    feature_pairs=[("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3"), ("stage4", "stage4")],
    temperature=1.0, pixels="inside",
)  # fmt: skip
