# SegFormer-B0 (b0.py's) -> DeepLabV3-ResNet-18 by dual alignment; the student and its schedule are r18_scratch.py's.
_base_ = ["r18_scratch.py", "../_base_/methods/hmkd.py"]
teacher = dict(backbone="mit_b0", head="segformer", width=256, weights="work_dirs/camvid_cpu/b0/student.safetensors")
