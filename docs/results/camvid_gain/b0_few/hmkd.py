# DeepLabV3-ResNet-18 -> SegFormer-B0 from random weights: labels of every 8th training image, and all 367 images.
_base_ = ["alone.py", "../../../../configs/_base_/methods/hmkd.py"]
data = dict(unlabelled="train/*.png")
teacher = dict(
    backbone="resnet18", head="deeplabv3", output_stride=8, width=128,
    weights="work_dirs/camvid_gain/teacher_r18/student.safetensors",
)  # fmt: skip
train = dict(batch_size=4, unlabelled_batch=4)
