student = dict(
    backbone="resnet18", head="deeplabv3", output_stride=8, width=128, aux=True, pretrained="pretrained/resnet18.pth"
)
