# SegFormer-B0 alone, with the labels of every 8th training image.
_base_ = ["../b0_alone.py"]
data = dict(train_list="train_8th.txt", packed="data/camvid_packed_gain")
schedule = dict(max_iters=4000)
train = dict(batch_size=8, ema=0.999)
