# The quick start's student by HMKD, on its ten labelled images and 190 images without labels (docs/training.md).
_base_ = ["hmkd.py"]
data = dict(unlabelled_root="data/unlabelled", unlabelled="train/*.png")
train = dict(batch_size=4, unlabelled_batch=4)
