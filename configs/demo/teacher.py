# The quick start's teacher: DeepLabV3-ResNet-18 on the synthetic streets, from random weights.
_base_ = ["../_base_/demo.py"]
student = dict(backbone="resnet18", head="deeplabv3", output_stride=16, width=128, aux=True)
optimizer = dict(type="sgd", lr=0.02, weight_decay=1e-4)
schedule = dict(max_iters=600, warmup_iters=50)
