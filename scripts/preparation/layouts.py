"""The images and labels of the published data sets, found where their archives put them."""

import re
from pathlib import Path
from typing import NamedTuple

COUNTS = {
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "camvid": {"train": 367, "val": 101, "test": 233},
}
ORIGINAL_CAMVID = (("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels"))


class Found(NamedTuple):
    """The content of a data folder: the list lines of each split, and all problems."""

    lines: dict[str, list[str]]
    problems: list[str]


def find_cityscapes(root: Path) -> Found:
    """Pairs leftImg8bit with gtFine. The public labels of the test set are empty, so its lines have only the image."""
    found = Found({}, [])
    for split in COUNTS["cityscapes"]:
        pictures, truths = root / "leftImg8bit" / split, root / "gtFine" / split
        images = _by_name(pictures, "*/*", "_leftImg8bit.png")
        if split == "test":
            found.lines[split] = [str(path.relative_to(root)) for path in images.values()]
            continue
        # Where both kinds of labels exist, labelIds are used.
        labels = _by_name(truths, "*/*", "_gtFine_labelTrainIds.png") | _by_name(truths, "*/*", "_gtFine_labelIds.png")
        found.lines[split] = _pair(root, images, labels, found.problems)
    return found


def find_camvid(root: Path) -> Found:
    """SegNet's folders, or else the original 701 frames, split as SegNet did."""
    found = Found({}, [])
    original = next((pair for pair in ORIGINAL_CAMVID if (root / pair[0]).is_dir() and (root / pair[1]).is_dir()), None)
    if (root / "train").is_dir() or original is None:
        for split in COUNTS["camvid"]:
            images, labels = _by_name(root / split, "*", ".png"), _by_name(root / f"{split}annot", "*", ".png")
            found.lines[split] = _pair(root, images, labels, found.problems)
        return found
    images, labels = _by_name(root / original[0], "*", ".png"), _by_name(root / original[1], "*", "_L.png")
    splits = {name: segnet_split(name) for name in images | labels}
    found.problems.extend(
        f"{name}: not a frame of CamVid, so it is in no split" for name in splits if splits[name] is None
    )
    for split in COUNTS["camvid"]:
        mine = [{name: files[name] for name in files if splits[name] == split} for files in (images, labels)]
        found.lines[split] = _pair(root, *mine, found.problems)
    return found


def segnet_split(name: str) -> str | None:
    """SegNet's split of a CamVid frame: 367 train, 101 val, 233 test; None if it is not a frame of CamVid.

    train: 0006R0 (101), the first half of 0001TP (62, up to frame 8520), 0016E5 at one frame a second (204);
    val: the 101 frames of 0016E5 at fifteen a second (7959..8159); test: Seq05VD (171), the other half of 0001TP (62).
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", name)
    if match is None:
        return None
    sequence, frame = match[1], int(match[2])
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame > 8520):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= frame <= 8159 else "train"


def _by_name(folder: Path, pattern: str, suffix: str) -> dict[str, Path]:
    """File name without suffix -> path, sorted; empty where the folder is missing."""
    return {path.name.removesuffix(suffix): path for path in sorted(folder.glob(pattern + suffix))}


def _pair(root: Path, images: dict[str, Path], labels: dict[str, Path], problems: list[str]) -> list[str]:
    """List lines of the complete pairs; an image or label without a partner is added to ``problems``."""
    problems += [f"{images[name]}: has no label" for name in sorted(images.keys() - labels.keys())]
    problems += [f"{labels[name]}: has no image" for name in sorted(labels.keys() - images.keys())]
    return [_line(images[name].relative_to(root), labels[name].relative_to(root)) for name in images if name in labels]


def _line(image: Path, label: Path) -> str:
    separator = "\t" if " " in f"{image}{label}" else " "  # names with spaces need a tab between them
    return f"{image}{separator}{label}"


FINDERS = {"cityscapes": find_cityscapes, "camvid": find_camvid}
