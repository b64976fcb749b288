# SegFormer-B4 -> FPN-EfficientViT-B0, a real-time student, on CamVid by dual alignment.
_base_ = ["../hmkd/camvid_b4_b0.py"]
student = dict(_delete_=True, backbone="efficientvit_b0", head="fpn", width=128, pretrained="timm")
