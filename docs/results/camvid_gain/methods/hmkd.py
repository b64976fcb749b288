_base_ = ["../../../../configs/_base_/methods/hmkd.py"]
distill = dict(pixels="inside")
