"""How many pixels and images of each class a data set's labels hold, and what that means for training."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.base import SegDataset
from datasets.ids import Color
from utils.names import VOID

ENET = 1.02  # c in ENet's formula for class weights
Value = int | Color  # of a pixel in a label file


class Census(NamedTuple):
    """What the labels of one split hold."""

    images: int  # labelled images that could be read
    pixels: np.ndarray  # K int64, of each class
    occurs: np.ndarray  # K int64, images in which each class occurs
    void: int  # pixels without a class

    @property
    def absent(self) -> list[int]:
        """Classes without a pixel."""
        return np.flatnonzero(self.pixels == 0).tolist()

    @property
    def void_share(self) -> float:
        """Part of all pixels that have no class, in 0..1."""
        return self.void / max(1, self.void + int(self.pixels.sum()))


def count_labels(dataset: SegDataset, description: str, skip_bad: bool = False) -> Census:
    """Reads every label of a data set once; draws a bar on a terminal.

    Samples without a label are left out, with ``skip_bad`` also labels that cannot be read.

    Raises:
        ValueError, OSError: a label cannot be read, or holds an id that the data set does not know.
    """

    def histogram(index: int) -> np.ndarray | None:
        try:
            label = dataset.load_label(index)
        except (ValueError, OSError):
            if skip_bad:
                return None
            raise
        return None if label is None else np.bincount(label.ravel(), minlength=256)

    pool = ThreadPoolExecutor(8)
    try:
        found = pool.map(histogram, range(len(dataset)))
        bar = tqdm(found, f"{description}: counting labels", len(dataset), leave=False, disable=None)
        return add_up([counts for counts in bar if counts is not None], dataset.num_classes)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, the labels that are left are not read


def add_up(histograms: Sequence[np.ndarray], num_classes: int) -> Census:
    """256 counts of each label -> the census of K classes."""
    counts = np.array(histograms, np.int64).reshape(-1, 256)
    classes = counts[:, :num_classes]
    return Census(len(counts), classes.sum(0), (classes > 0).sum(0), int(counts[:, VOID].sum()))


def class_weights(pixels: Sequence[int]) -> tuple[float, ...]:
    """Weights of the classes in a cross-entropy: 1 / ln(1.02 + share of all labelled pixels).

    ENet (Paszke et al., 2016, section 5.2). They lie between 1.4, for a class that has all pixels, and 50.5.

    Args:
        pixels: K, labelled pixels of each class, one or more in total.
    """
    total = sum(map(int, pixels))
    return tuple(1 / math.log(ENET + int(count) / total) for count in pixels)


def count_values(raw: np.ndarray, label: np.ndarray) -> dict[tuple[Value, int], int]:
    """Counts the pixels of each value in a label file, by the class that it was read as.

    Args:
        raw: H W ids or H W 3 colours, as in the file.
        label: H W train ids.

    Returns:
        (id or colour, train id) -> pixels.
    """
    if raw.ndim == 2:
        numbers, values = raw.ravel(), None
    else:
        colors, numbers = np.unique(raw.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
        values = [(color >> 16, color >> 8 & 255, color & 255) for color in colors.tolist()]
    counts = np.bincount(numbers)
    classes = np.zeros(len(counts), np.uint8)
    classes[numbers] = label.ravel()
    found = np.flatnonzero(counts).tolist()
    return {(values[n] if values else n, int(classes[n])): int(counts[n]) for n in found}


def check_census(train: Census | None, val: Census, class_names: Sequence[str], default_table: bool) -> list[str]:
    """What is odd about the labels of a training set (None: it has none) and a validation set, in sentences.

    ``default_table``: nobody said which raw id is which class.

    Raises:
        ValueError: nothing can be learned, or nothing can be measured.
    """
    notes = [] if train is None else _check_training(train, class_names, default_table)
    if not val.pixels.any():
        raise ValueError(
            f"data.val_list: none of the {val.images} labels holds a pixel with a class, so no mIoU can be measured; "
            "expected labelled images"
        )
    if val.absent:
        notes.append(
            f"no pixel in the validation labels: {_named(val.absent, class_names)}; mIoU is over the other "
            f"{len(class_names) - len(val.absent)} of {len(class_names)} classes, as long as it is not predicted"
        )
    return notes


def _check_training(train: Census, class_names: Sequence[str], default_table: bool) -> list[str]:
    """As ``check_census``, of the training labels."""
    hint = ""
    if default_table and train.void_share > 0.01:
        *first, last = range(len(class_names))
        table = ", ".join([*(f"{k}: {k}" for k in first), f"255: {last}"])
        hint = (
            f"; {100 * train.void_share:.1f} % of the pixels hold 255, which is void unless data.id_table gives it "
            f"a class: where 255 is {class_names[-1]!r}, set data.id_table={{{table}}}"
        )
    present = [name for name, pixels in zip(class_names, train.pixels, strict=True) if pixels]
    if not present:
        raise ValueError(
            f"data.train_list: all {train.images} labels are void everywhere, so there is nothing to learn; expected "
            f"labels with two classes or more{hint}"
        )
    if len(present) == 1:
        raise ValueError(
            f"data.train_list: all labelled pixels are {present[0]!r}, so there is nothing to tell apart; expected two "
            "classes or more" + (hint or f": give what is not {present[0]!r} a class of its own, such as 'background'")
        )
    if not train.absent:
        return []
    absent = _named(train.absent, class_names)
    return [f"no pixel in the training labels: {absent}; it cannot be learned from them{hint}"]


def _named(classes: Sequence[int], class_names: Sequence[str]) -> str:
    return ", ".join(repr(class_names[k]) for k in classes)
