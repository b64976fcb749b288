# HMKD as released, without relation alignment: the feature and logit terms only.
_base_ = ["hmkd_released.py"]
distill = dict(relation=0.0)
