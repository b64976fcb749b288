# DeepLabV3-ResNet-18 alone, with the labels of every 8th training image.
_base_ = ["../r18_alone.py"]
data = dict(train_list="train_8th.txt", packed="data/camvid_packed_gain")
schedule = dict(max_iters=4000)
train = dict(batch_size=8, ema=0.999)
