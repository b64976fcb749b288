# SegFormer-B4 -> FPN-MobileNetV4-Conv-S, a real-time student, on CamVid by dual alignment.
_base_ = ["../hmkd/camvid_b4_b0.py"]
student = dict(_delete_=True, backbone="mobilenetv4_conv_small", head="fpn", width=128, pretrained="timm")
