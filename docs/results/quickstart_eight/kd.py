# Plain KD on the quick start's labelled and unlabelled images.
_base_ = ["../../../configs/demo/unlabelled.py"]
distill = dict(_delete_=True, type="kd", weight=4.0, pixels="inside")
