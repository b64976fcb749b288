_base_ = ["../../../../configs/_base_/methods/dist.py"]
distill = dict(pixels="inside")
