# With CIRKD's weights for SegFormer.
_base_ = ["../../../../configs/_base_/methods/cwd.py"]
distill = dict(feature=5.0, logit=0.3, pixels="inside")
