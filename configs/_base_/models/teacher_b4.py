# The experiment names the weights, because a teacher belongs to a dataset.
teacher = dict(backbone="mit_b4", head="segformer", width=768)
