"""COCO-Stuff (Caesar et al., CVPR 2018), the 164k version: 118287 / 5000 images, 80 things and 91 kinds of stuff."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset, read_classes
from utils.names import VOID


@DATASETS.register("coco_stuff")
class COCOStuff(SegDataset):
    """COCO's images of 2017 with the pixelmaps of things and stuff: ids 0..181, eleven of them without class, void 255.

    Its authors give no colours, so they are generated.

    Args:
        root: folder with ``train2017``, ``val2017`` and ``stuffthingmaps_trainval2017``.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        names, palette, ids = read_classes("coco_stuff")
        super().__init__(root, list_file, names, palette, {**ids, VOID: VOID})
