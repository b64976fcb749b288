# Memories of a tenth of the published size: the data set is that much smaller than Cityscapes.
_base_ = ["../../../../configs/_base_/methods/cirkd.py"]
distill = dict(pixel_queue=2000, region_queue=200, pixel_keys=1024, region_keys=256, pixels="inside")
