"""Cityscapes (Cordts et al., CVPR 2016): 2975 / 500 / 1525 street images of 1024 x 2048, 19 evaluated classes."""

from pathlib import Path

import numpy as np

from datasets.base import DATASETS, SegDataset, read_classes
from datasets.ids import id_table
from utils.names import VOID


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
        names, palette, ids = read_classes("cityscapes")
        super().__init__(root, list_file, names, palette, dict.fromkeys(range(34), VOID) | ids)
        train_ids = {train: train for train in range(len(names))} | {VOID: VOID}
        self._tables = {"_labelIds.png": self.id_table, "_labelTrainIds.png": id_table(train_ids, len(names))}
        for _, label in self.files:
            if label is not None and not label.name.endswith(tuple(self._tables)):
                raise ValueError(f"{label} in {self.root / list_file}: expected a file *{' or *'.join(self._tables)}")

    def table_of(self, path: Path) -> np.ndarray:
        return next(table for suffix, table in self._tables.items() if path.name.endswith(suffix))
