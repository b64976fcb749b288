# DeepLabV3-ResNet-18 alone, from ImageNet weights and at output stride 8, with the labels of every 8th training image.
_base_ = ["../r18_few/alone.py"]
student = dict(pretrained="pretrained/resnet18.pth", output_stride=8)
schedule = dict(max_iters=2000)
optimizer = dict(_delete_=True, type="sgd", lr=0.01, head_lr_mult=2.0, momentum=0.9, weight_decay=5e-4)
