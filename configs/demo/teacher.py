# The quick start's teacher: ResNet-18 under SegFormer's head on the synthetic streets, from random weights.
_base_ = ["student.py"]
student = dict(backbone="resnet18")
schedule = dict(max_iters=1000)
