# HMKD as released, with a small head on every stage of the student that predicts the teacher's classes.
_base_ = ["hmkd_released.py"]
distill = dict(stage_logit=1.0)
