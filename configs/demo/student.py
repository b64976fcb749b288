# The quick start's student alone: SegFormer-B0, from random weights, on ten labelled images.
_base_ = ["../_base_/demo.py"]
