"""Finds the mask of each image: in the usual layouts of folders, or by two patterns. All paths are relative."""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.pixels import ARRAYS
from scripts._inputs import IMAGES, files_below
from scripts.preparation.problems import DataError, name_some

# Names of folders in lower case, beside each other in the data folder or in a folder of it.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit")
LABEL_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "ann", "segmentationclass", "gtfine", "gt",
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
    """The images of a folder.

    Attributes:
        pairs: sorted by image.
        unlabelled: images without a mask that the user named.
        unused: other pictures.
        layout: how they were found, a sentence.
    """

    pairs: list[Pair]
    unlabelled: list[str]
    unused: list[str]
    layout: str


class Sides(NamedTuple):
    """Image -> its key, mask -> its key: an image and its mask have the same key, but for known endings."""

    images: dict[str, str]
    labels: dict[str, str]
    layout: str


def split_of(image: str) -> str | None:
    """train, val or test, from a folder above the image; None: no folder has such a name."""
    return next((SPLITS[part.lower()] for part in PurePosixPath(image).parts[:-1] if part.lower() in SPLITS), None)


def listed_splits(root: Path) -> dict[str, str]:
    """File name without suffix -> split, from Pascal VOC's ``ImageSets/Segmentation``; empty where there is none."""
    paths = {split: root / "ImageSets/Segmentation" / f"{split}.txt" for split in ("train", "val", "test")}
    return {stem: split for split, path in paths.items() if path.is_file() for stem in path.read_text().split()}


def find_pairs(
    root: Path,
    images: str | None = None,
    labels: str | None = None,
    exclude: Sequence[str] = (),
    unlabelled: Sequence[str] = (),
) -> Found:
    """Finds the images below a folder and the mask of each.

    Args:
        root: the folder.
        images: pattern of the images, as ``img/**/*.jpg``; None: the usual layouts are tried.
        labels: pattern of an image's mask, where ``{stem}`` is the image's name without suffix and ``{folder}`` its
            folder below the part of ``images`` that comes before the first ``*``.
        exclude: patterns of files to leave out.
        unlabelled: patterns of images that need no mask.

    Raises:
        DataError: there is no image, an image has no mask or two, a mask has no image, several layouts fit, or a
            pattern is wrong.
    """
    if (images is None) != (labels is None):
        raise DataError(["give both --images and --labels, or neither"])
    left_out = _matching(root, exclude, "--exclude")
    files = [name for name in (path.as_posix() for path in files_below(root)) if name not in left_out]
    pictures = [name for name in files if name.lower().endswith(IMAGES)]
    if not pictures:
        raise DataError([f"{root} holds no image; expected files that end in {', '.join(IMAGES)}"])
    if images is None:
        sides = _usual_sides(root, files)
        pairs, problems = _match(sides)
    else:
        chosen = sorted(_matching(root, [images], "--images") & set(pictures))
        pairs, problems, sides = _match_patterns(chosen, images, labels, set(files))
    if listed := listed_splits(root):
        pairs = [pair for pair in pairs if PurePosixPath(pair.image).stem in listed]
    allowed = _matching(root, unlabelled, "--unlabelled") & set(pictures)
    free = sorted(
        {pair.image for pair in pairs if pair.label is None and pair.image in allowed}
        | allowed - {pair.image for pair in pairs} - sides.labels.keys()
    )
    pairs = [pair for pair in pairs if pair.image not in set(free)]
    lonely = [pair.image for pair in pairs if pair.label is None and split_of(pair.image) != "test"]
    if pairs and len(lonely) == len(pairs):
        raise DataError([_no_masks(root, files, lonely)])
    if lonely:
        problems.append(
            f"{len(lonely)} images have no mask: {name_some(sorted(lonely))}; add the masks, "
            "leave the images out by --exclude, or name them by --unlabelled to use them without labels"
        )
    if problems:
        raise DataError(problems)
    unused = set(pictures) - {name for pair in pairs for name in pair} - set(free)
    return Found(sorted(pairs), free, sorted(unused), sides.layout)


def _usual_sides(root: Path, files: Sequence[str]) -> Sides:
    """The images and masks of the one usual layout that fits."""
    masks = [name for name in files if name.lower().endswith(IMAGES + ARRAYS)]
    layouts = _layouts(masks)
    if len(layouts) > 1:
        several = "; ".join(_describe(places) for places in layouts)
        raise DataError([f"{root} fits {len(layouts)} layouts: {several}; {BY_HAND}"])
    if not layouts:
        return _beside(masks)
    (places,) = layouts
    places |= _test_folders(places, files)
    images, labels = {}, {}
    for image_folder, label_folder in places.items():
        for name in masks:
            if _below(name, label_folder):
                if not label_folder.lower().endswith("gtfine") or PurePosixPath(name).stem.endswith("_labelIds"):
                    labels[name] = f"{image_folder}/{_without_suffix(name.removeprefix(f'{label_folder}/'))}"
            elif _below(name, image_folder) and name.lower().endswith(IMAGES):
                rest = name.removeprefix(f"{image_folder}/") if image_folder else name
                images[name] = f"{image_folder}/{_without_suffix(rest)}"
    return Sides(images, labels, _describe(places))


def _layouts(files: Iterable[str]) -> list[dict[str, str]]:
    """Each layout that fits: folder of images -> folder of masks."""
    names = defaultdict(set)
    for parts in (PurePosixPath(name).parts for name in files):
        for depth in range(min(2, len(parts) - 1)):
            names["/".join(parts[:depth])].add(parts[depth])
    layouts = defaultdict(dict)
    for above, inside in names.items():
        for image in inside:
            for label in inside:
                if image.lower() in IMAGE_FOLDERS and label.lower() in LABEL_FOLDERS:
                    layouts[image, label][_join(above, image)] = _join(above, label)
                elif image.lower() in SPLITS and label == f"{image}annot":
                    layouts["annot"][_join(above, image)] = _join(above, label)
    if not layouts:  # masks in a folder that has the same tree as the images outside it
        for label in names[""]:
            if label.lower() in LABEL_FOLDERS:
                layouts[label][""] = label
    return list(layouts.values())


def _test_folders(places: Mapping[str, str], files: Iterable[str]) -> dict[str, str]:
    """Folders like ``test/images`` beside ``train/images``, whose masks may be secret."""
    folders = {PurePosixPath(name).parent for name in files}
    found = {}
    for image, label in places.items():
        first, _, rest = image.partition("/")
        if SPLITS.get(first.lower()) == "train":
            for test in {folder.parts[0] for folder in folders if folder.parts} & {"test", "testing"}:
                if _join(test, rest) not in places:
                    found[_join(test, rest)] = label.replace(first, test, 1)
    return found


def _beside(files: Sequence[str]) -> Sides:
    """Masks in the folders of the images: another ending, or PNG beside JPEG."""
    stems = defaultdict(set)
    for name in files:
        stems[_without_suffix(name)].add(PurePosixPath(name).suffix.lower())
    bases = stems.keys() | {_strip(stem, IMAGE_ENDINGS) for stem in stems}

    def is_mask(name: str) -> bool:
        stem, suffix = _without_suffix(name), PurePosixPath(name).suffix.lower()
        short = _strip(stem, LABEL_ENDINGS)
        return (short != stem and short in bases) or (suffix == ".png" and bool(stems[stem] & {".jpg", ".jpeg"}))

    return Sides(
        {name: _without_suffix(name) for name in files if not is_mask(name) and name.lower().endswith(IMAGES)},
        {name: _without_suffix(name) for name in files if is_mask(name)},
        "masks are in the folders of their images",
    )


def _match(sides: Sides) -> tuple[list[Pair], list[str]]:
    """The pairs, an image without a mask with None, and the problems."""
    exact, short = defaultdict(set), defaultdict(set)
    for label, key in sides.labels.items():
        exact[key].add(label)
        short[_strip(key, LABEL_ENDINGS)].add(label)
    pairs, problems, used = [], [], set()
    for image, key in sides.images.items():
        found = exact[key] | short[key] | short[_strip(key, IMAGE_ENDINGS)]
        used |= found
        if len(found) > 1:
            problems.append(_two_masks(image, found))
        pairs.append(Pair(image, min(found, default=None)))
    return pairs, problems + _check_shared(pairs) + _check_unused(sides.labels.keys() - used)


def _match_patterns(
    chosen: Sequence[str], images: str, labels: str, files: set[str]
) -> tuple[list[Pair], list[str], Sides]:
    """As ``_match``, by the user's patterns."""
    if "{stem}" not in labels or re.search(r"\{(?!stem\}|folder\})", labels):
        raise DataError([f"--labels {labels!r}: expected {{stem}}, and perhaps {{folder}}, as in 'mask/{{stem}}.png'"])
    start = images.split("*")[0].rpartition("/")[0]
    pattern = re.escape(labels).replace(r"\*", "[^/]*").replace(r"\{stem\}", "[^/]*").replace(r"\{folder\}/", "(.*/)?")
    all_masks = {name for name in files if re.fullmatch(pattern, name)} - (set(chosen) if labels != images else set())
    pairs, problems, used = [], [], set()
    for image in chosen:
        path = PurePosixPath(image)
        folder = path.parent.relative_to(start).as_posix()
        filled = labels.replace("{folder}/", "" if folder == "." else f"{folder}/").replace("{stem}", path.stem)
        exact = "[^/]*".join(map(re.escape, filled.split("*")))
        found = sorted(name for name in all_masks if re.fullmatch(exact, name)) if "*" in filled else [filled]
        found = [name for name in found if name in files and name != image]
        used.update(found)
        if len(found) > 1:
            problems.append(_two_masks(image, found))
        pairs.append(Pair(image, found[0] if found else None))
    if not used:
        raise DataError([f"--labels {labels!r} finds no mask: that of {image} would be {filled}, which is missing"])
    problems += _check_shared(pairs) + _check_unused(all_masks - used)
    return pairs, problems, Sides({}, {name: name for name in used}, f"images {images}, masks {labels}")


def _two_masks(image: str, masks: Iterable[str]) -> str:
    return f"{image} has several masks: {', '.join(sorted(masks))}; leave all but one out by --exclude, or set --labels"


def _check_shared(pairs: Sequence[Pair]) -> list[str]:
    """Problems: masks that belong to several images."""
    owners = defaultdict(list)
    for image, label in pairs:
        owners[label].append(image)
    return [
        f"{label} is the mask of several images: {', '.join(sorted(images))}; leave all but one out by --exclude"
        for label, images in owners.items()
        if label is not None and len(images) > 1
    ]


def _check_unused(masks: Iterable[str]) -> list[str]:
    masks = sorted(masks)
    if not masks:
        return []
    return [
        f"{len(masks)} masks have no image: {name_some(masks)}; add the images, or leave the masks out by --exclude"
    ]


def _no_masks(root: Path, files: Sequence[str], images: Sequence[str]) -> str:
    other = next((name for name in files if name.lower().endswith((".json", ".txt"))), None)
    polygons = f"; where {other} holds polygons, --to-masks makes masks of them" if other else ""
    return f"{root} holds {len(images)} images, and no mask of any of them was found; {BY_HAND}{polygons}"


def _matching(root: Path, patterns: Iterable[str], flag: str) -> set[str]:
    """The files that patterns match; each must match one or more."""
    found = set()
    for pattern in patterns:
        names = {Path(name).as_posix() for name in glob.glob(pattern, root_dir=root, recursive=True)}
        names = {name for name in names if (root / name).is_file()}
        if not names or PurePosixPath(pattern).is_absolute():
            raise DataError([f"{flag} {pattern!r} matches no file below {root}; expected a pattern relative to it"])
        found |= names
    return found


def _describe(places: dict[str, str]) -> str:
    return ", ".join(
        f"images in {image or 'the folder'}/, masks in {label}/" for image, label in sorted(places.items())
    )


def _strip(key: str, endings: Sequence[str]) -> str:
    return next((key.removesuffix(ending) for ending in endings if key.endswith(ending)), key)


def _without_suffix(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _join(*parts: str) -> str:
    return "/".join(filter(None, parts))
