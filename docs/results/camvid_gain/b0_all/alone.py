# SegFormer-B0 alone, with the labels of all 367 images.
_base_ = ["../b0_few/alone.py"]
data = dict(train_list="train.txt", packed="data/camvid_packed_all")
