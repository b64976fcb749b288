# HMKD with relation alignment, anchored like the features. The release has weight 1 on a sum, which is
# B n^2 times our mean: 4 * 180^2 = 1.3e5 for 4 images of 360 x 480 with n = 180 patches. A larger crop needs more.
_base_ = ["hmkd_anchored.py"]
distill = dict(relation=1.3e5)
