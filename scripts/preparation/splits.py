"""Divides pairs into train, val and test: by the folder's own split, or at random with whole videos on one side."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datasets.sequences import group_sequences
from scripts.preparation.pairs import Pair, listed_splits, split_of
from scripts.preparation.problems import DataError
from utils.names import name_some


def divide(root: Path, pairs: Sequence[Pair], share: float, seed: int) -> tuple[dict[str, list[Pair]], str]:
    """Uses the split that folders or VOC's lists give; where it has no val, a share (0..1) of train becomes val.

    Returns:
        Split -> its pairs, and how they were divided, a sentence.

    Raises:
        DataError: some images are in no split, or there are too few to divide.
    """
    listed = listed_splits(root)
    splits: dict[str | None, list[Pair]] = {}
    for pair in pairs:
        split = listed[PurePosixPath(pair.image).stem] if listed else split_of(pair.image)
        splits.setdefault(split, []).append(pair)
    if "train" not in splits:
        train, val, how = hold_out(pairs, share, seed)
        return {"train": train, "val": val}, how
    if None in splits:
        outside = name_some([pair.image for pair in splits[None]])
        count = len(splits[None])
        raise DataError(
            [f"{count} images are in no folder named train, val or test, as others are: {outside}; move them"]
        )
    how = "split by " + ("ImageSets/Segmentation" if listed else "the folders' names")
    if "val" not in splits:
        splits["train"], splits["val"], chosen = hold_out(splits["train"], share, seed)
        how += f", which have no val: val is a part of train, {chosen}"
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}, how


def hold_out(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair], str]:
    """Train, val and a sentence; the images of one video are on one side.

    Videos come in random order. Each goes to val if that brings val nearer to its share.
    """
    groups = group_sequences([pair.image for pair in pairs], seed)
    if len(groups) < 2:
        raise DataError([f"{len(pairs)} image cannot be divided into train and val; expected two or more"])
    wanted, val = share * len(pairs), set()
    for number, group in enumerate(groups):
        nearer = abs(len(val) + len(group) - wanted) < abs(len(val) - wanted)
        # One group or more on each side.
        if (nearer and len(val) + len(group) < len(pairs)) or (not val and number == len(groups) - 1):
            val.update(group)
    how = "names tell no videos apart: split by image"
    if len(groups) < len(pairs):
        how = f"split by video: {sum(val.issuperset(group) for group in groups)} of {len(groups)} videos are in val"
    part = f"{len(val)} of {len(pairs)} images in val ({len(val) / len(pairs):.0%}, --val {share:g}), --seed {seed}"
    sides = [[pair for index, pair in enumerate(pairs) if (index in val) == side] for side in (False, True)]
    return *sides, f"{how}; {part}"
