"""Your own data: list files, class names, and optionally colours and an id table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.base import DATASETS, SegDataset
from datasets.ids import Color
from utils.names import VOID


@DATASETS.register("list")
class ListedDataset(SegDataset):
    """A dataset that needs no code: its classes are values of the config.

    Args:
        class_names: K names, in train id order.
        palette: K RGB colours; None: generated.
        id_table: raw id -> train id (255 is void), as a dict, or as a list whose index is the raw id. Raw ids that it
            does not contain are errors, except 255, which is void by default. None: label files hold 0..K-1 and 255.
        color_table: (r, g, b) -> train id (255 is void), for label files in colour. Colours that it does not contain
            are errors. None: label files in colour are errors.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        id_table: Mapping[int, int] | Sequence[int] | None = None,
        color_table: Mapping[Color, int] | None = None,
    ):
        if id_table is None:
            id_table = range(len(class_names))
        ids = dict(id_table) if isinstance(id_table, Mapping) else dict(enumerate(id_table))
        colours = distinct_colours(len(class_names)) if palette is None else palette
        super().__init__(root, list_file, class_names, colours, {VOID: VOID} | ids, color_table)


def distinct_colours(count: int) -> np.ndarray:
    """Up to 255 different colours, count x 3 uint8: Pascal VOC's, with black for class 0, which is often background.

    Bits 0, 1, 2 of the class number are the top bits of red, green, blue; bits 3, 4, 5 the next ones; and so on. None
    is white, the colour of void in pictures.
    """
    numbers = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for level in range(3):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colours
