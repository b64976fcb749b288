# DeepLabV3-ResNet-18 alone, from random weights: the CNN student of b0_r18.py.
_base_ = ["b0.py"]
student = dict(_delete_=True, backbone="resnet18", head="deeplabv3", output_stride=16, width=128)
schedule = dict(max_iters=500)
eval = dict(interval=250)
