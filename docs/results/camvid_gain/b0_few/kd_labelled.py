# Plain KD on the labelled images alone.
_base_ = ["hmkd.py"]
data = dict(unlabelled=None)
distill = dict(_delete_=True, type="kd")
train = dict(batch_size=8, unlabelled_batch=0)
