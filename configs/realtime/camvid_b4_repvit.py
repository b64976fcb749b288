# SegFormer-B4 -> FPN-RepViT-M0.9, a real-time student, on CamVid by dual alignment.
_base_ = ["../hmkd/camvid_b4_b0.py"]
student = dict(_delete_=True, backbone="repvit_m0_9", head="fpn", width=128, pretrained="timm")
