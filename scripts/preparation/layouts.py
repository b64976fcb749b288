"""The images and labels of the published data sets, found where their archives put them."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

COUNTS = {
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "camvid": {"train": 367, "val": 101, "test": 233},
    "ade20k": {"train": 20210, "val": 2000},
    "voc": {"train": 1464, "trainaug": 10582, "val": 1449},
    "coco_stuff": {"train": 118287, "val": 5000},
}
ORIGINAL_CAMVID = (("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels"))

COCO_FOLDERS = ((".", "stuffthingmaps_trainval2017"), ("images", "annotations"))  # of images and of pixelmaps
COCO_NAME = "[0-9]" * 12  # not the files *_labelTrainIds.png that mmsegmentation puts beside the pixelmaps


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


def find_ade20k(root: Path) -> Found:
    """ADEChallengeData2016, the archive of SceneParse150."""
    found, folder = Found({}, []), root / "ADEChallengeData2016"
    for split, name in (("train", "training"), ("val", "validation")):
        images = _by_name(folder / "images" / name, "*", ".jpg")
        labels = _by_name(folder / "annotations" / name, "*", ".png")
        found.lines[split] = _pair(root, images, labels, found.problems)
    return found


def find_voc(root: Path) -> Found:
    """VOCdevkit/VOC2012 by its lists of names, and trainaug where SegmentationClassAug has SBD's labels.

    trainaug is the names in trainaug.txt or, without this file, all images of train and SegmentationClassAug that are
    not in val. An image that VOC itself labels keeps that label.
    """
    found, folder = Found({}, []), root / "VOCdevkit" / "VOC2012"
    lists = {split: folder / "ImageSets" / "Segmentation" / f"{split}.txt" for split in COUNTS["voc"]}
    names = {split: path.read_text(encoding="utf-8").split() for split, path in lists.items() if path.is_file()}
    found.problems.extend(f"{lists[split]} is missing" for split in ("train", "val") if split not in names)
    images, own, added = (
        _by_name(folder / name, "*", suffix)
        for name, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"), ("SegmentationClassAug", ".png"))
    )
    val = set(names.get("val", []))
    if added:
        names.setdefault("trainaug", sorted({*names.get("train", []), *added} - val))
    elif "trainaug" in names:
        found.problems.append(
            f"{lists['trainaug']} needs SBD's labels as PNG files of ids, and {folder / 'SegmentationClassAug'} has "
            "none (SBD's own .mat files are not read); put them there, or move the list away"
        )
        del names["trainaug"]
    for split, wanted in names.items():
        labels = added | own if split == "trainaug" else own
        found.problems.extend(
            f"{lists[split]} has {name}, which is also in val.txt" for name in wanted if split != "val" and name in val
        )
        found.problems.extend(
            f"{lists[split]} has {name}, which has no image and no label"
            for name in wanted
            if name not in images and name not in labels
        )
        pairs = [{name: files[name] for name in wanted if name in files} for files in (images, labels)]
        found.lines[split] = _pair(root, *pairs, found.problems)
    return found


def find_coco_stuff(root: Path) -> Found:
    """COCO's archives of images and the one of pixelmaps, in the folders of either of ``COCO_FOLDERS``."""
    found = Found({}, [])
    pictures, truths = next((pair for pair in COCO_FOLDERS if (root / pair[1]).is_dir()), COCO_FOLDERS[0])
    for split in COUNTS["coco_stuff"]:
        images = _by_name(root / pictures / f"{split}2017", "*", ".jpg")
        labels = _by_name(root / truths / f"{split}2017", COCO_NAME, ".png")
        found.lines[split] = _pair(root, images, labels, found.problems)
    return found


class MovedList(NamedTuple):
    """A list whose files have moved: the absolute folder that its paths begin with, and its lines without it."""

    prefix: str
    lines: list[str]


def read_moved_list(root: Path, name: str) -> MovedList | None:
    """Reads a list with its author's paths, as SegNet's for CamVid: /SegNet/CamVid/train/0001TP_006690.png.

    Args:
        root: folder of the data set, where the files are now.
        name: of the list in it.

    Returns:
        None if there is no list, or no folder that all its paths begin with and without which they are in ``root``.
    """
    path = root / name
    fields = path.read_text(encoding="utf-8-sig").split() if path.is_file() else []
    if not fields or len(fields) % 2 or not fields[0].startswith("/"):
        return None
    parts = PurePosixPath(fields[0]).parts
    for prefix in (str(PurePosixPath(*parts[:length])).rstrip("/") + "/" for length in range(1, len(parts))):
        rest = [field.removeprefix(prefix) for field in fields if field.startswith(prefix)]
        if len(rest) == len(fields) and all((root / field).is_file() for field in rest):
            return MovedList(prefix, [f"{image} {label}" for image, label in zip(rest[::2], rest[1::2], strict=True)])
    return None


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


FINDERS = {
    "cityscapes": find_cityscapes,
    "camvid": find_camvid,
    "ade20k": find_ade20k,
    "voc": find_voc,
    "coco_stuff": find_coco_stuff,
}
