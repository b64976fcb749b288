# DeepLabV3-ResNet-101 -> SegFormer-B0 on Cityscapes by dual alignment.
_base_ = ["../baselines/cityscapes_b0.py", "../_base_/models/teacher_r101.py", "../_base_/methods/hmkd.py"]
teacher = dict(weights="pretrained/cityscapes_r101.safetensors")  # trained with configs/baselines/cityscapes_r101.py
