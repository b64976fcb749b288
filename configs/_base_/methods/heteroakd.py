# L = L_task + feature * L_feature + anchor * L_anchor + logit * L_logit. losses/heteroakd.py lists what the
# paper leaves open.
distill = dict(
    type="heteroakd", feature=1.0, anchor=1.0, logit=0.1, pairs=[("stage4", "stage4")], temperature=1.0,
)  # fmt: skip
