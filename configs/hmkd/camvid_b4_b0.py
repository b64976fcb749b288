# SegFormer-B4 -> SegFormer-B0 on CamVid by dual alignment.
_base_ = ["../baselines/camvid_b0.py", "../_base_/models/teacher_b4.py", "../_base_/methods/hmkd.py"]
teacher = dict(weights="pretrained/camvid_b4.safetensors")  # trained with configs/baselines/camvid_b4.py
