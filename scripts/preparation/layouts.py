"""The images and labels of the published data sets, found where their archives put them."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

COUNTS = {
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "camvid": {"train": 367, "val": 101, "test": 233},
    "ade20k": {"train": 20210, "val": 2000},
    "voc": {"train": 1464, "trainaug": 10582, "val": 1449},
    "coco_stuff": {"train": 118287, "val": 5000},
}
LAYOUTS = """\
layouts below the folder:
  cityscapes  leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png
              gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png (or _labelTrainIds.png)
  camvid      SegNet's {train,trainannot,val,valannot,test,testannot}/*.png; its lists (paths that begin with
              /SegNet/CamVid/) are written anew, and kept as {train,val,test}.txt.orig
              or the original 701_StillsRaw_full/*.png, LabeledApproved_full/*_L.png, or images and labels
  ade20k      ADEChallengeData2016/{images,annotations}/{training,validation}
  voc         VOCdevkit/VOC2012/{ImageSets/Segmentation,JPEGImages,SegmentationClass,SegmentationClassAug}
  coco_stuff  {train2017,val2017} and stuffthingmaps_trainval2017/{train2017,val2017},
              or {images,annotations}/{train2017,val2017}
"""
CAMVID_FOLDERS = (("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels"))  # of the original frames

Files = dict[str, Path]  # by file name without ending
Splits = dict[str, tuple[Files, Files | None]]  # images and labels of each split; None: its labels are secret


def find_lists(name: str, root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The list lines of each split of a published data set, and the problems: files without a partner, wrong names."""
    problems: list[str] = []
    lines = {}
    for split, (images, labels) in FINDERS[name](root, problems).items():
        if labels is None:
            lines[split] = [list_line(path.relative_to(root).as_posix()) for path in images.values()]
            continue
        problems += [f"{images[key]}: has no label" for key in sorted(images.keys() - labels.keys())]
        problems += [f"{labels[key]}: has no image" for key in sorted(labels.keys() - images.keys())]
        pairs = [(images[key].relative_to(root), labels[key].relative_to(root)) for key in images if key in labels]
        lines[split] = [list_line(image.as_posix(), label.as_posix()) for image, label in pairs]
    return lines, problems


def list_line(image: str, label: str | None = None) -> str:
    """A line of a list file.

    Raises:
        ValueError: an image without a label has a space in its name.
    """
    if label is None and " " in image:
        raise ValueError(f"{image!r} has a space and no label, which a list cannot hold; rename it")
    names = [image] if label is None else [image, label]
    return ("\t" if " " in "".join(names) else " ").join(names)


def find_cityscapes(root: Path, problems: list[str]) -> Splits:
    """Pairs leftImg8bit with gtFine. The public labels of the test set are empty, so its lines have only the image."""
    images, labels = "leftImg8bit/{}/*/*_leftImg8bit.png", "gtFine/{}/*/*_gtFine_labelIds.png"
    found = _find_splits(root, images, labels, COUNTS["cityscapes"])
    others = _find_splits(root, images, labels.replace("Ids", "TrainIds"), COUNTS["cityscapes"])
    # Where both kinds of labels exist, labelIds are used.
    paired = {split: (pictures, others[split][1] | ids) for split, (pictures, ids) in found.items()}
    return paired | {"test": (found["test"][0], None)}


def find_camvid(root: Path, problems: list[str]) -> Splits:
    """SegNet's folders, or else the original 701 frames, split as SegNet did."""
    folders = next((pair for pair in CAMVID_FOLDERS if all((root / folder).is_dir() for folder in pair)), None)
    if (root / "train").is_dir() or folders is None:
        return _find_splits(root, "{}/*.png", "{}annot/*.png", COUNTS["camvid"])
    images, labels = _by_name(root, f"{folders[0]}/*.png"), _by_name(root, f"{folders[1]}/*_L.png")
    splits = {name: segnet_split(name) for name in images | labels}
    problems += [f"{name}: not a frame of CamVid, so it is in no split" for name in splits if splits[name] is None]
    members = {split: [name for name in splits if splits[name] == split] for split in COUNTS["camvid"]}
    return {split: (_select(images, names), _select(labels, names)) for split, names in members.items()}


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


def find_ade20k(root: Path, problems: list[str]) -> Splits:
    """ADEChallengeData2016, the archive of SceneParse150."""
    folder = root / "ADEChallengeData2016"
    found = _find_splits(folder, "images/{}/*.jpg", "annotations/{}/*.png", ("training", "validation"))
    return {"train": found["training"], "val": found["validation"]}


def find_voc(root: Path, problems: list[str]) -> Splits:
    """VOCdevkit/VOC2012 by its lists of names, and trainaug where SegmentationClassAug has SBD's labels.

    trainaug is the names in trainaug.txt or, without this file, all images of train and SegmentationClassAug that are
    not in val. An image that VOC itself labels keeps that label.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    lists = {split: folder / "ImageSets" / "Segmentation" / f"{split}.txt" for split in COUNTS["voc"]}
    names = {split: path.read_text(encoding="utf-8").split() for split, path in lists.items() if path.is_file()}
    problems.extend(f"{lists[split]} is missing" for split in ("train", "val") if split not in names)
    images, own, added = (
        _by_name(folder, pattern)
        for pattern in ("JPEGImages/*.jpg", "SegmentationClass/*.png", "SegmentationClassAug/*.png")
    )
    val = set(names.get("val", []))
    if added:
        names.setdefault("trainaug", sorted({*names.get("train", []), *added} - val))
    elif names.pop("trainaug", None) is not None:
        problems.append(
            f"{lists['trainaug']} needs SBD's labels as PNG files of ids, and {folder / 'SegmentationClassAug'} has "
            "none (SBD's own .mat files are not read); put them there, or move the list away"
        )
    found: Splits = {}
    for split, wanted in names.items():
        labels = added | own if split == "trainaug" else own
        twice = [name for name in wanted if split != "val" and name in val]
        problems += [f"{lists[split]} has {name}, which is also in val.txt" for name in twice]
        absent = [name for name in wanted if name not in images and name not in labels]
        problems += [f"{lists[split]} has {name}, which has no image and no label" for name in absent]
        found[split] = (_select(images, wanted), _select(labels, wanted))
    return found


def find_coco_stuff(root: Path, problems: list[str]) -> Splits:
    """COCO's archives of images and the one of pixelmaps."""
    images, labels = ".", "stuffthingmaps_trainval2017"
    if (root / "annotations").is_dir():
        images, labels = "images", "annotations"
    # Not the files *_labelTrainIds.png that mmsegmentation puts beside the pixelmaps.
    numbered = "[0-9]" * 12 + ".png"
    return _find_splits(root, f"{images}/{{}}2017/*.jpg", f"{labels}/{{}}2017/{numbered}", COUNTS["coco_stuff"])


def relocate_list(text: str, root: Path) -> str | None:
    """A list with its author's absolute paths, as SegNet's for CamVid, rewritten with paths relative to ``root``.

    Returns:
        None if there is no folder that all paths begin with and without which they are in ``root``.
    """
    fields = text.split()
    if not fields or len(fields) % 2 or not fields[0].startswith("/"):
        return None
    for folder in reversed(PurePosixPath(fields[0]).parents):
        prefix = str(folder).rstrip("/") + "/"
        rest = [field.removeprefix(prefix) for field in fields if field.startswith(prefix)]
        if len(rest) == len(fields) and all((root / field).is_file() for field in rest):
            return "".join(f"{image} {label}\n" for image, label in zip(rest[::2], rest[1::2], strict=True))
    return None


def _find_splits(root: Path, images: str, labels: str, splits: Iterable[str]) -> Splits:
    """The files of each split by patterns in which ``{}`` is the split's folder."""
    return {split: (_by_name(root, images.format(split)), _by_name(root, labels.format(split))) for split in splits}


def _by_name(folder: Path, pattern: str) -> Files:
    """File name without what comes after the pattern's last wildcard -> path, sorted."""
    ending = re.split(r"[*\]]", pattern)[-1]
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(pattern))}


def _select(files: Files, names: list[str]) -> Files:
    return {name: files[name] for name in names if name in files}


FINDERS = {
    "cityscapes": find_cityscapes,
    "camvid": find_camvid,
    "ade20k": find_ade20k,
    "voc": find_voc,
    "coco_stuff": find_coco_stuff,
}
