"""Finds the mask of each image: in the usual layouts of folders, or by two patterns. All paths are relative."""

import glob
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.pixels import ARRAYS
from scripts._inputs import IMAGES, files_below
from scripts.preparation.problems import DataError
from utils.names import name_some

# Names of folders, in lower case.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit")
LABEL_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "ann", "segmentationclass", "gtfine", "gt",
    "trainannot", "valannot", "testannot",
)  # fmt: skip
IMAGE_ENDINGS = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")
LABEL_ENDINGS = ("_gtFine_labelIds", "_labelIds", "_mask", "_label", "_lbl", "_seg", "_gt", "_L")
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
BY_HAND = "--images 'img/**/*.jpg' --labels 'mask/{stem}_lbl.png' says which files belong together"


class Pair(NamedTuple):
    """An image and its mask; None: the labels of a test set may be secret."""

    image: str
    label: str | None


class Found(NamedTuple):
    """The pairs, sorted by image; the images without a mask that the user named; and other pictures."""

    pairs: list[Pair]
    unlabelled: list[str]
    unused: list[str]


Keys = dict[str, set[str]]  # file -> its keys; an image and a mask belong together if they share a key


def split_of(image: str) -> str | None:
    """train, val or test, from a folder above the image; None: no folder has such a name."""
    return next((SPLITS[part.lower()] for part in PurePosixPath(image).parts[:-1] if part.lower() in SPLITS), None)


def listed_splits(root: Path) -> dict[str, str]:
    """File name without suffix -> split, from Pascal VOC's ``ImageSets/Segmentation``; empty where there is none."""
    paths = {split: root / "ImageSets/Segmentation" / f"{split}.txt" for split in ("train", "val", "test")}
    return {stem: split for split, path in paths.items() if path.is_file() for stem in path.read_text().split()}


def find_pairs(
    root: Path, images: str | None = None, labels: str | None = None, unlabelled: Sequence[str] = ()
) -> Found:
    """Finds the images below a folder and the mask of each.

    Args:
        images: pattern of the images, as ``img/**/*.jpg``; None: the usual layouts are tried.
        labels: pattern of an image's mask, where ``{stem}`` is the image's name without suffix and ``{folder}`` its
            folder below the part of ``images`` that comes before the first ``*``.
        unlabelled: patterns of images that need no mask.

    Raises:
        DataError: there is no image, an image has no mask or two, a mask has no image, or a pattern is wrong.
    """
    if (images is None) != (labels is None):
        raise DataError(["give both --images and --labels, or neither"])
    files = [path.as_posix() for path in files_below(root)]
    pictures = {name for name in files if name.lower().endswith(IMAGES)}
    if not pictures:
        raise DataError([f"{root} holds no image; expected files that end in {', '.join(IMAGES)}"])
    allowed = {name for pattern in unlabelled for name in _matching(root, pattern, "--unlabelled")} & pictures
    of_images, of_labels = _usual_keys(files) if images is None else _pattern_keys(root, images, labels, pictures)
    pairs, problems = _match(of_images, of_labels)
    if listed := listed_splits(root):
        pairs = [pair for pair in pairs if PurePosixPath(pair.image).stem in listed]
    labelled = [pair for pair in pairs if pair.label is not None]
    if not labelled:
        other = next((name for name in files if name.lower().endswith((".json", ".txt"))), None)
        polygons = f"; where {other} holds polygons, --to-masks makes masks of them" if other else ""
        raise DataError([f"{root} holds {len(pictures)} images, and no mask was found; {BY_HAND}{polygons}"])
    free = sorted(allowed - {pair.image for pair in labelled} - of_labels.keys())
    places, splits = ({function(pair.image) for pair in labelled} for function in (_place, split_of))
    alone = sorted({pair.image for pair in pairs if pair.label is None} - allowed)
    secret = [image for image in alone if "train" in splits and split_of(image) == "test"]
    # With patterns all images count; without them those of a split, and those in the folders of images with a mask.
    counted = [
        name for name in alone if images is not None or split_of(name) in ("train", "val") or _place(name) in places
    ]
    if lonely := sorted(set(counted) - set(secret)):
        problems.append(
            f"{len(lonely)} images have no mask: {name_some(lonely)}; add the masks, move the images away, or name "
            "them by --unlabelled to use them without labels"
        )
    if problems:
        raise DataError(problems)
    pairs = sorted([*labelled, *(Pair(image, None) for image in secret)])
    return Found(pairs, free, sorted(pictures - {name for pair in pairs for name in pair} - set(free)))


def _usual_keys(files: Sequence[str]) -> tuple[Keys, Keys]:
    """The keys of images and masks: paths without the folders and endings that say what a file is."""
    files = [name for name in files if name.lower().endswith(IMAGES + ARRAYS)]
    in_folders = {name for name in files if _is_label(name)}
    # Cityscapes has other pictures beside the masks.
    masks = {name for name in in_folders if "/gtFine/" not in f"/{name}" or "_labelIds." in name}
    masks = masks or _masks_beside(files)
    images = [name for name in files if name not in masks | in_folders and name.lower().endswith(IMAGES)]
    return (
        {name: {_key(name), _strip(_key(name), IMAGE_ENDINGS)} for name in images},
        {name: {_key(name), _strip(_key(name), LABEL_ENDINGS)} for name in masks},
    )


def _key(name: str) -> str:
    """The path without suffix and folders of ``IMAGE_FOLDERS`` and ``LABEL_FOLDERS``: train/images/a.jpg -> train/a."""
    *folders, file = PurePosixPath(name).parts
    folders = [folder.removesuffix("annot") for folder in folders]  # trainannot belongs to train
    kept = [folder for folder in folders if folder.lower() not in IMAGE_FOLDERS + LABEL_FOLDERS]
    return "/".join([*kept, PurePosixPath(file).stem])


def _is_label(name: str) -> bool:
    """Whether the first folder above the file that names a kind of files names masks."""
    kinds = [part for part in PurePosixPath(name.lower()).parts[:-1] if part in IMAGE_FOLDERS + LABEL_FOLDERS]
    return bool(kinds) and kinds[0] in LABEL_FOLDERS


def _masks_beside(files: Sequence[str]) -> set[str]:
    """The masks in the folders of their images: those with another ending, and PNG beside JPEG."""
    bases = {_strip(_key(name), IMAGE_ENDINGS) for name in files} | {_key(name) for name in files}
    jpegs = {_key(name) for name in files if name.lower().endswith((".jpg", ".jpeg"))}
    ending = {
        name
        for name in files
        if _strip(_key(name), LABEL_ENDINGS) in bases and _strip(_key(name), LABEL_ENDINGS) != _key(name)
    }
    return ending | {name for name in files if name.lower().endswith(".png") and _key(name) in jpegs}


def _place(image: str) -> tuple[str, ...]:
    """The folder of ``IMAGE_FOLDERS`` that holds the image, or else its own folder."""
    folders = PurePosixPath(image).parts[:-1]
    depths = [depth for depth, folder in enumerate(folders, 1) if folder.lower() in IMAGE_FOLDERS]
    return folders[: depths[0]] if depths else folders


def _pattern_keys(root: Path, images: str, labels: str, pictures: set[str]) -> tuple[Keys, Keys]:
    """The keys of images and masks by the user's patterns: the path of the mask."""
    if "{stem}" not in labels or re.search(r"\{(?!stem\}|folder\}/)|\*", labels):
        raise DataError([f"--labels {labels!r}: expected {{stem}}, and perhaps {{folder}}/, as in 'mask/{{stem}}.png'"])
    start = images.split("*")[0].rpartition("/")[0]
    masks = _matching(root, labels.replace("{folder}", "**").replace("{stem}", "*"), "--labels")
    keys = {}
    for image in sorted(_matching(root, images, "--images") & pictures - masks):
        folder = PurePosixPath(image).parent.relative_to(start).as_posix()
        filled = labels.replace("{folder}/", "" if folder == "." else f"{folder}/")
        keys[image] = {filled.replace("{stem}", PurePosixPath(image).stem)}
    if not keys:
        raise DataError([f"--images {images!r} matches no image that is not a mask by --labels {labels!r}"])
    return keys, {mask: {mask} for mask in masks}


def _match(images: Keys, labels: Keys) -> tuple[list[Pair], list[str]]:
    """The pairs, an image without a mask with None, and the problems."""
    by_key, owners = defaultdict(set), defaultdict(list)
    for label, keys in labels.items():
        for key in keys:
            by_key[key].add(label)
    pairs, problems = [], []
    for image, keys in images.items():
        found = sorted(set().union(*(by_key[key] for key in keys)))
        if len(found) > 1:
            problems.append(f"{image} has several masks: {', '.join(found)}; move all but one away, or use --labels")
        for label in found:
            owners[label].append(image)
        pairs.append(Pair(image, found[0] if found else None))
    for label, own in owners.items():
        if len(own) > 1:
            problems.append(f"{label} is the mask of several images: {', '.join(sorted(own))}; move all but one away")
    if unused := sorted(labels.keys() - owners.keys()):
        problems.append(
            f"{len(unused)} masks have no image: {name_some(unused)}; add the images or move the masks away"
        )
    return pairs, problems


def _matching(root: Path, pattern: str, flag: str) -> set[str]:
    """The files that a pattern matches, one or more."""
    found = {Path(name).as_posix() for name in glob.glob(pattern, root_dir=root, recursive=True)}
    found = {name for name in found if (root / name).is_file()}
    if not found or PurePosixPath(pattern).is_absolute():
        raise DataError([f"{flag} {pattern!r} matches no file below {root}; expected a pattern relative to it"])
    return found


def _strip(key: str, endings: Sequence[str]) -> str:
    return next((key.removesuffix(ending) for ending in endings if key.endswith(ending)), key)
