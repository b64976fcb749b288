# DeepLabV3-ResNet-18 -> SegFormer-B0 by dual alignment, with the student and schedule of b0.py.
_base_ = ["b0.py", "../_base_/methods/hmkd_anchored.py"]
teacher = dict(
    backbone="resnet18", head="deeplabv3", output_stride=8, width=128,
    weights="work_dirs/camvid_cpu/r18/student.safetensors",
)  # fmt: skip
