"""PASCAL VOC 2012 (Everingham et al., IJCV 2010): 1464 / 1449 images, or 10582 / 1449 with SBD's labels, 21 classes."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset, read_classes
from utils.names import VOID


@DATASETS.register("voc")
class VOC(SegDataset):
    """Images with label files of 0..20, void 255: SegmentationClass, or SegmentationClassAug with SBD's labels.

    Args:
        root: folder with ``VOCdevkit``.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        names, palette, ids = read_classes("voc")
        super().__init__(root, list_file, names, palette, {**ids, VOID: VOID})
