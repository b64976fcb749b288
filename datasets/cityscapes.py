"""Cityscapes (Cordts et al., CVPR 2016): 2975 / 500 / 1525 street images of 1024 x 2048, 19 evaluated classes."""

from pathlib import Path

import numpy as np

from datasets.base import DATASETS, SegDataset
from datasets.ids import id_table
from utils.names import VOID

# (name, labelId, colour) in train id order, from the official table of labels.
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
LABEL_IDS = dict.fromkeys(range(34), VOID) | {raw: train for train, (_, raw, _) in enumerate(CLASSES)}
TRAIN_IDS = {train: train for train in range(len(CLASSES))} | {VOID: VOID}


@DATASETS.register("cityscapes")
class Cityscapes(SegDataset):
    """leftImg8bit images with gtFine labels, either ``*_labelIds.png`` or ``*_labelTrainIds.png``.

    Prediction files hold labelIds, as the evaluation server expects them.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``.
        list_file: list of ``image label`` lines; those of the test set name only the image.

    Raises:
        ValueError: a label file has another ending (``_color.png``, ``_instanceIds.png``), or as ``SegDataset``.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        names, _, palette = zip(*CLASSES, strict=True)
        super().__init__(root, list_file, names, palette, LABEL_IDS)
        self._tables = {"_labelIds.png": self.id_table, "_labelTrainIds.png": id_table(TRAIN_IDS, len(CLASSES))}
        for _, label in self.files:
            if label is not None and not label.name.endswith(tuple(self._tables)):
                raise ValueError(f"{label} in {self.root / list_file}: expected a file *{' or *'.join(self._tables)}")

    def table_of(self, path: Path) -> np.ndarray:
        return next(table for suffix, table in self._tables.items() if path.name.endswith(suffix))
