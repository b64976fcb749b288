# The file itself is named by the experiment: a teacher belongs to a dataset.
teacher = dict(backbone="mit_b4", head="segformer", width=768)
