# DeepLabV3-ResNet-101 -> SegFormer-B0 on CamVid by dual alignment.
_base_ = ["../baselines/camvid_b0.py", "../_base_/models/teacher_r101.py", "../_base_/methods/hmkd.py"]
teacher = dict(weights="pretrained/camvid_r101.safetensors")  # trained with configs/baselines/camvid_r101.py
