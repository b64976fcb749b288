"""Which images are frames of one video, by their names, so that one video never falls on both sides of a split."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

# What comes before the frame's number. A word after the number, as in aachen_000000_000019_leftImg8bit, is allowed.
FRAME = re.compile(r"(?P<video>.*?)[-_. ]?(?:frame|img|f)?[-_. ]?\d+(?:[-_.][a-z](?:\w*[a-z])?)?", re.IGNORECASE)


def sequence_of(image: str) -> str:
    """The folder and video of an image: its path without frame number. A name without a number is its own video."""
    path = PurePosixPath(image)
    match = FRAME.fullmatch(path.stem)
    return str(path.parent / (path.stem if match is None else match["video"]))


def group_sequences(images: Sequence[str], seed: int) -> list[list[int]]:
    """The indices of the images of each video, sorted by name; the videos in a random order that ``seed`` decides.

    Where the names do not tell videos apart (all images would be one video), each image is a group of its own.
    """
    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(images)), key=lambda index: images[index]):
        groups.setdefault(sequence_of(images[index]), []).append(index)
    found = list(groups.values())
    if len(found) == 1:
        found = [[index] for index in found[0]]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
