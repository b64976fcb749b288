# HMKD in its released form without relation alignment: feature and logit terms alone.
_base_ = ["hmkd_released.py"]
distill = dict(relation=0.0)
