"""From the ids or colours in a label file to train ids, and back."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from utils.names import OUTSIDE, VOID

UNKNOWN = 254  # in an id table: a raw id that is an error in a label file
LARGEST = 2**16 - 1  # the largest id that a label file can hold
Color = tuple[int, int, int]


def check_classes(class_names: tuple[str, ...]) -> None:
    """Raises ValueError if a data set cannot have these classes."""
    if len(class_names) > OUTSIDE:
        raise ValueError(
            f"{len(class_names)} classes; expected 2..{OUTSIDE}: train ids are uint8, {OUTSIDE} is padding and "
            f"{VOID} is void"
        )
    if len(class_names) < 2:
        named = f"only the class {class_names[0]!r}" if class_names else "no class"
        raise ValueError(
            f"class_names has {named}, so there is nothing to tell apart; expected two classes or more: give the rest "
            "of the image a class of its own, such as class_names=['background', 'object']"
        )


def id_table(ids: Mapping[int, int], num_classes: int) -> np.ndarray:
    """256 uint8, or 65536 where an id needs them: raw id -> train id, 254 (UNKNOWN) for raw ids not in ``ids``.

    Raises:
        ValueError: an id is out of range, or a class has no raw id.
    """
    for raw, train in ids.items():
        if not 0 <= raw <= LARGEST:
            raise ValueError(f"id table maps {raw} to {train}; expected a raw id in 0..{LARGEST}")
    _check_train_ids("id table", ids, num_classes)
    table = np.full(256 if max(ids) < 256 else LARGEST + 1, UNKNOWN, np.uint8)
    table[list(ids)] = list(ids.values())
    return table


def raw_ids(ids: Mapping[int, int]) -> np.ndarray:
    """256 int32: train id -> its lowest raw id, -1 where there is none; void is 255 unless ``ids`` says otherwise."""
    inverse = np.full(256, -1, np.int32)
    inverse[VOID] = VOID
    for raw, train in sorted(ids.items(), reverse=True):
        inverse[train] = raw
    return inverse


def check_colors(colors: Mapping[Color, int], num_classes: int) -> None:
    """Raises ValueError if a colour or train id is out of range, or a class has no colour."""
    for color, train in colors.items():
        if not all(0 <= level <= 255 for level in color):
            raise ValueError(f"color table maps {color} to {train}; expected (r, g, b) in 0..255")
    _check_train_ids("color table", colors, num_classes)


def map_ids(raw: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """H W uint8 or uint16 raw ids -> H W uint8 train ids.

    Raises:
        ValueError: an id is unknown; names the file.
    """
    if raw.dtype == np.uint8:
        label = cv2.LUT(raw, table[:256])
    else:
        label = np.where(raw < len(table), table[np.minimum(raw, len(table) - 1)], np.uint8(UNKNOWN))
    unknown = label == UNKNOWN
    if unknown.any():
        bad, known = np.unique(raw[unknown]).tolist(), np.flatnonzero(table != UNKNOWN).tolist()
        raise ValueError(f"{path} holds the ids {bad}; expected only the ids {known} of this data set")
    return label


def map_colors(raw: np.ndarray, colors: Mapping[Color, int], path: Path) -> np.ndarray:
    """H W 3 uint8 colours -> H W uint8 train ids.

    Raises:
        ValueError: a colour is unknown; names the file, the most frequent unknown colour, and its pixels.
    """
    label = _color_table(tuple(colors.items()))[_pack(raw)]
    unknown = label == UNKNOWN
    if unknown.any():
        found, counts = np.unique(raw[unknown], axis=0, return_counts=True)
        most = counts.argmax()
        raise ValueError(
            f"{path}: {unknown.sum()} pixels have {len(found)} colours of no class, most of them ({counts[most]}) RGB "
            f"{tuple(found[most].tolist())}; name the colour in the table, or paint the pixels in a colour that is "
            "void, and save without lossy compression"
        )
    return label


@cache
def _color_table(colors: tuple[tuple[Color, int], ...]) -> np.ndarray:
    """2**24 uint8: packed colour -> train id, 254 for others. Not kept by a data set, which is sent to workers."""
    table = np.full(2**24, UNKNOWN, np.uint8)
    for color, train in colors:
        table[_pack(np.array(color))] = train
    return table


def _pack(colors: np.ndarray) -> np.ndarray:
    """... x 3 colours -> r * 65536 + g * 256 + b."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _check_train_ids(name: str, table: Mapping, num_classes: int) -> None:
    for raw, train in table.items():
        if not (0 <= train < num_classes or train == VOID):
            raise ValueError(f"{name} maps {raw} to {train}; expected a train id in 0..{num_classes - 1} or {VOID}")
    if absent := sorted(set(range(num_classes)) - set(table.values())):
        raise ValueError(
            f"{name} has nothing for the train ids {absent}; expected one raw value for each class or more"
        )
