# SegFormer-B0 -> DeepLabV3-ResNet-18 from ImageNet weights: labels of every 8th training image, and all 367 images.
_base_ = ["alone.py", "../../../../configs/_base_/methods/hmkd.py"]
data = dict(unlabelled="train/*.png")
teacher = dict(
    backbone="mit_b0", head="segformer", width=256, weights="work_dirs/camvid_gain/teacher_b0/student.safetensors"
)
train = dict(batch_size=4, unlabelled_batch=4)
