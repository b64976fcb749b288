# L = L_task + feature * L_feature + logit * L_logit + relation * L_relation; losses/hmkd.py explains every option.
distill = dict(
    type="hmkd", feature=1.0, logit=1.0, relation=0.0,
    feature_pairs=[("stage3", "stage3")], temperature=1.0, anchor="labels",
)  # fmt: skip
