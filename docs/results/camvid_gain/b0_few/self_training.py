# Self-training on all images: the average of the student's own weights is the teacher.
_base_ = ["hmkd.py"]
teacher = dict(_delete_=True, weights="ema")
distill = dict(_delete_=True, type="self_training", threshold=0.9)
