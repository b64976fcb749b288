# The quick start's student alone: SegFormer-B0, from random weights, on ten labelled images of its own.
_base_ = ["../_base_/demo.py"]
data = dict(train_list="train_few.txt")
