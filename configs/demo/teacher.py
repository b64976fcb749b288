# The quick start's teacher: ResNet-18 with SegFormer's head, from random weights, on 200 labelled images.
_base_ = ["../_base_/demo.py"]
data = dict(root="data/many")
student = dict(backbone="resnet18")
optimizer = dict(lr=5e-4)
schedule = dict(max_iters=1000)
eval = dict(interval=250)
