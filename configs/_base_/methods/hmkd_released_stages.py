# HMKD in its released form with a light head on every student stage too, which is to predict the teacher's classes.
_base_ = ["hmkd_released.py"]
distill = dict(stage_logit=1.0)
