student = dict(
    backbone="resnet101", head="deeplabv3", output_stride=8, width=256, aux=True, pretrained="pretrained/resnet101.pth"
)
