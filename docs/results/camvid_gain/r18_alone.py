# DeepLabV3-ResNet-18 alone from random weights, CamVid at a third of its size: the gate of the study.
_base_ = ["b0_alone.py"]
student = dict(_delete_=True, backbone="resnet18", head="deeplabv3", output_stride=16, width=128)
