# DeepLabV3-ResNet-18 -> SegFormer-B0 from random weights: labels of every 8th training image, and all 367 images.
_base_ = ["../b0_alone.py", "../../../../configs/_base_/methods/hmkd.py"]
data = dict(train_list="train_8th.txt", unlabelled="train/*.png", packed="data/camvid_packed_gain")
teacher = dict(
    backbone="resnet18", head="deeplabv3", output_stride=8, width=128,
    weights="work_dirs/camvid_gain/teacher_r18/student.safetensors",
)  # fmt: skip
schedule = dict(max_iters=4000)
train = dict(batch_size=4, unlabelled_batch=4, ema=0.999)
