# SegFormer-B0 (of b0.py) -> DeepLabV3-ResNet-18 by dual alignment, with the student and schedule of r18_scratch.py.
_base_ = ["r18_scratch.py", "../_base_/methods/hmkd_anchored.py"]
teacher = dict(backbone="mit_b0", head="segformer", width=256, weights="work_dirs/camvid_cpu/b0/student.safetensors")
