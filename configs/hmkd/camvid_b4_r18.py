# SegFormer-B4 -> DeepLabV3-ResNet-18 on CamVid by dual alignment.
_base_ = ["../baselines/camvid_r18.py", "../_base_/models/teacher_b4.py", "../_base_/methods/hmkd.py"]
teacher = dict(weights="pretrained/camvid_b4.safetensors")  # trained with configs/baselines/camvid_b4.py
