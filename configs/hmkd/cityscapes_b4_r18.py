# SegFormer-B4 -> DeepLabV3-ResNet-18 on Cityscapes by dual alignment.
_base_ = ["../baselines/cityscapes_r18.py", "../_base_/models/teacher_b4.py", "../_base_/methods/hmkd.py"]
teacher = dict(weights="pretrained/cityscapes_b4.safetensors")  # trained with configs/baselines/cityscapes_b4.py
