_base_ = ["../../../../configs/_base_/methods/kd.py"]
distill = dict(pixels="inside")
