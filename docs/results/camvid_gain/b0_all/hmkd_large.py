# The teacher sees the images at half their size, where it is best; the student at 0.35 of it, as always.
_base_ = ["hmkd.py"]
teacher = dict(scale=1.43)
