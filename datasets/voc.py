"""PASCAL VOC 2012 (Everingham et al., IJCV 2010): 1464 / 1449 images, or 10582 / 1449 with SBD's labels, 21 classes."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset
from datasets.listed import distinct_colours
from utils.names import VOID

NAMES = """\
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
"""
CLASSES = tuple(" ".join(name.split()) for name in NAMES.split(","))
IDS = {train: train for train in range(len(CLASSES))} | {VOID: VOID}


@DATASETS.register("voc")
class VOC(SegDataset):
    """Images with label files of 0..20, void 255: SegmentationClass, or SegmentationClassAug with SBD's labels.

    Args:
        root: folder with ``VOCdevkit``.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        super().__init__(root, list_file, CLASSES, distinct_colours(len(CLASSES)), IDS)
