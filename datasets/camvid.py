"""CamVid (Brostow et al., 2009) with the 11 classes and the 367 / 101 / 233 split of SegNet."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset, read_table
from utils.names import VOID

NAMES = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"  # SegNet's classes
UNLABELLED = 11  # in SegNet's label files


@DATASETS.register("camvid")
class CamVid(SegDataset):
    """Images with either SegNet's label files (0..10, void 11) or the original ones in 32 colours.

    The pixel format decides: one channel or a palette is SegNet's, RGB is the original.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        originals, names = read_table("camvid"), NAMES.split()
        first = {train: color for train, color, _ in reversed(originals)}
        ids = {train: train for train in range(len(names))} | {UNLABELLED: VOID, VOID: VOID}
        colors = {(0, 0, 0): VOID} | {color: train for train, color, _ in originals}
        super().__init__(root, list_file, names, [first[train] for train in range(len(names))], ids, colors)
