# The same pair with the labels of all 367 images.
_base_ = ["../b0_few/hmkd.py"]
data = dict(train_list="train.txt", unlabelled=None, packed="data/camvid_packed_all")
train = dict(batch_size=8, unlabelled_batch=0)
