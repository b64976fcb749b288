# SegFormer-B0 -> DeepLabV3-ResNet-18 from random weights: labels of every 8th training image, and all 367 images.
_base_ = ["../r18_alone.py", "../../../../configs/_base_/methods/hmkd.py"]
data = dict(train_list="train_8th.txt", unlabelled="train/*.png", packed="data/camvid_packed_gain")
teacher = dict(
    backbone="mit_b0", head="segformer", width=256, weights="work_dirs/camvid_gain/teacher_b0/student.safetensors"
)
schedule = dict(max_iters=4000)
train = dict(batch_size=4, unlabelled_batch=4, ema=0.999)
