# The experiment names the weights, because a teacher belongs to a dataset.
teacher = dict(backbone="resnet101", head="deeplabv3", output_stride=8, width=256)
