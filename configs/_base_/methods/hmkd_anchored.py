# HMKD with a learned target of the features, which a classifier of the labels anchors, at one stage.
distill = dict(
    type="hmkd", feature=1.0, logit=1.0, target="learned", anchor="labels",
    feature_pairs=[("stage3", "stage3")], temperature=1.0, pixels="labelled",
)  # fmt: skip
