# HMKD with relation alignment too, anchored as the rest. Our term is a mean, of the order of n^-2 for n patches: this
# is the release's weight of 1 on its sum, over 4 images of 360 x 480 (n = 180 at stride 4). It grows with the crop.
_base_ = ["hmkd.py"]
distill = dict(relation=1.3e5)
