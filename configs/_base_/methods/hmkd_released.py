# HMKD as released: all three terms, and the distillation loss itself trains the modules on the teacher's side. The
# release's weight 1 on the sum of its relation term, over 4 images of 360 x 480, equals this weight on our mean.
distill = dict(
    type="hmkd", feature=1.0, logit=1.0, relation=1.3e5, target="learned", anchor=None,
    feature_pairs=[("stage3", "stage3")], pixels="labelled",
)  # fmt: skip
