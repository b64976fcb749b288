"""Reads the objects of each image from COCO JSON, labelme JSON or YOLO files."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from scripts._inputs import IMAGES, files_below
from scripts.preparation.polygons import as_corners, rasterize
from scripts.preparation.problems import DataError, name_some

RLE_NEEDS = "run lengths need pycocotools: pip install '.[coco]'"


class Thing(NamedTuple):
    """One annotated object.

    Attributes:
        source: the file and the place in it, for errors.
        category: name of its class.
        draw: (H, W) -> H W bool; raises ValueError with what is wrong.
    """

    source: str
    category: str
    draw: Callable[[tuple[int, int]], np.ndarray]


class Annotations(NamedTuple):
    """What a folder's annotation files hold.

    Attributes:
        format: their name.
        categories: names, in the order of the ids.
        images: image, relative to the folder -> its objects, in the order of the file.
        sizes: image -> H, W for which it was annotated, where the file says it.
    """

    format: str
    categories: list[str]
    images: dict[str, list[Thing]]
    sizes: dict[str, tuple[int, int]]


def read_annotations(root: Path, classes: Sequence[str] | None = None) -> Annotations:
    """Finds and reads the annotation files below a folder.

    Args:
        root: the folder.
        classes: names of the classes, which YOLO's numbers need; None: YOLO's ``classes.txt``.

    Raises:
        DataError: there are none, or two kinds of them, or a file is wrong.
    """
    files = [path.as_posix() for path in files_below(root)]
    images = [name for name in files if name.lower().endswith(IMAGES)]
    documents = {name: _load(root / name) for name in files if name.lower().endswith(".json")}
    coco = {
        n: d
        for n, d in documents.items()
        if isinstance(d, dict) and {"images", "annotations", "categories"} <= d.keys()
    }
    labelme = {n: d for n, d in documents.items() if isinstance(d, dict) and {"shapes", "imagePath"} <= d.keys()}
    yolo = [] if coco or labelme else list(_yolo_files(images, set(files)))
    if bool(coco) + bool(labelme) + bool(yolo) != 1:
        found = "COCO JSON and labelme JSON" if coco else f"{len(documents)} JSON files of other kinds"
        raise DataError(
            [f"{root} has {found}; expected one kind of polygons: COCO JSON (images, annotations, categories), labelme "
             "JSON (shapes, imagePath), or YOLO's .txt files beside the images or in labels/"]
        )  # fmt: skip
    try:
        if coco:
            result = _read_coco(coco, images)
        elif labelme:
            result = _read_labelme(labelme, images)
        else:
            result = _read_yolo(root, yolo, classes)
    except (KeyError, TypeError, AttributeError) as error:
        names = name_some(list(coco or labelme))
        raise DataError([f"{names}: a part is not as its format says ({type(error).__name__}: {error})"]) from error
    if not any(result.images.values()):
        raise DataError([f"{', '.join([*documents] or [text for _, text in yolo])[:200]}: holds no object at all"])
    return result


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        what = "it is empty" if not path.stat().st_size else str(error)
        raise DataError([f"{path} is not JSON ({what}); write it again or move it away"]) from error


def _read_coco(documents: dict[str, dict], images: Sequence[str]) -> Annotations:
    categories: dict[int, str] = {}
    found: dict[str, list[Thing]] = {}
    sizes, problems = {}, []
    for name, document in documents.items():
        names = {entry["id"]: entry["name"] for entry in document["categories"]}
        problems += [
            f"{name}: category {key} is {names[key]!r}, and {categories[key]!r} in another file; make them agree"
            for key in names.keys() & categories.keys()
            if names[key] != categories[key]
        ]
        categories |= names
        paths = {}
        for entry in document["images"]:
            try:
                paths[entry["id"]] = _locate(entry["file_name"], name, images)
                found.setdefault(paths[entry["id"]], [])
                if {"height", "width"} <= entry.keys():
                    sizes[paths[entry["id"]]] = (entry["height"], entry["width"])
            except ValueError as error:
                problems.append(str(error))
        for entry in document["annotations"]:
            source = f"{name}: annotation {entry.get('id')}"
            if entry["category_id"] not in names:
                problems.append(f"{source} has the category {entry['category_id']}, which has no name in the file")
            elif entry["image_id"] in paths:
                draw = partial(_draw_coco, entry.get("segmentation"))
                found[paths[entry["image_id"]]].append(Thing(source, names[entry["category_id"]], draw))
    if problems:
        raise DataError(problems)
    return Annotations("COCO JSON", [categories[key] for key in sorted(categories)], found, sizes)


def _locate(file_name: str, document: str, images: Sequence[str]) -> str:
    """The image that a COCO file means: from the file's own folder, or else the one path that ends so.

    Raises:
        ValueError: there is none, or there are several.
    """
    own = (PurePosixPath(document).parent / file_name).as_posix()
    if own in images:
        return own
    ends = [name for name in images if f"/{name}".endswith(f"/{file_name}")]
    if len(ends) > 1:  # instances_train.json means images/train
        ends = [name for name in ends if PurePosixPath(name).parent.name in PurePosixPath(document).stem] or ends
    if len(ends) != 1:
        raise ValueError(f"{document}: image {file_name} is {f'in {len(ends)} places' if ends else 'missing'}")
    return ends[0]


def _draw_coco(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, dict):
        return _draw_run_lengths(segmentation, size)
    if not segmentation:
        raise ValueError("it has no polygon (a box alone is not enough)")
    return np.any([rasterize(as_corners(polygon), size) for polygon in segmentation], axis=0)


def _draw_run_lengths(segmentation: dict, size: tuple[int, int]) -> np.ndarray:
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"its run lengths are for {segmentation['size']} (H, W), and the image is {list(size)}")
    plain = isinstance(segmentation["counts"], list)
    if plain and sum(segmentation["counts"]) != size[0] * size[1]:
        raise ValueError(f"its run lengths add up to {sum(segmentation['counts'])} pixels, not {size[0] * size[1]}")
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ValueError(RLE_NEEDS) from error
    if plain:
        segmentation = mask.frPyObjects(segmentation, *size)
    return mask.decode(segmentation).astype(bool)


def _read_labelme(documents: dict[str, dict], images: Sequence[str]) -> Annotations:
    found: dict[str, list[Thing]] = {}
    sizes, problems = {}, []
    for name, document in documents.items():
        path = PurePosixPath(document["imagePath"].replace("\\", "/")).name
        try:
            image = _locate(path, name, images)
        except ValueError as error:
            problems.append(str(error))
            continue
        if {"imageHeight", "imageWidth"} <= document.keys():
            sizes[image] = (document["imageHeight"], document["imageWidth"])
        found[image] = [
            Thing(f"{name}: shape {number}", shape["label"], partial(_draw_shape, shape))
            for number, shape in enumerate(document["shapes"])
        ]
    if problems:
        raise DataError(problems)
    return Annotations(
        "labelme JSON", sorted({thing.category for things in found.values() for thing in things}), found, sizes
    )


def _draw_shape(shape: dict, size: tuple[int, int]) -> np.ndarray:
    kind = shape.get("shape_type", "polygon")
    if kind not in ("polygon", "rectangle"):
        raise ValueError(f"it is a {kind}; expected a polygon or a rectangle")
    points = shape["points"]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return rasterize(as_corners(points), size)


def _yolo_files(images: Iterable[str], files: set[str]) -> Iterator[tuple[str, str]]:
    """Each image with its text file: beside it, or in labels/ where the image is in images/."""
    for image in images:
        text = PurePosixPath(image).with_suffix(".txt")
        elsewhere = PurePosixPath(*("labels" if part == "images" else part for part in text.parts))
        for path in (text.as_posix(), elsewhere.as_posix()):
            if path in files:
                yield image, path
                break


def _read_yolo(root: Path, files: Sequence[tuple[str, str]], classes: Sequence[str] | None) -> Annotations:
    names = root / "classes.txt"
    if classes is None and not names.is_file():
        raise DataError([f"YOLO's files hold numbers of classes: give their names by --classes, or in {names}"])
    classes = list(classes) if classes is not None else names.read_text(encoding="utf-8").split("\n")
    classes = [name.strip() for name in classes if name.strip()]
    found: dict[str, list[Thing]] = {}
    problems = []
    for image, text in files:
        found[image] = []
        for number, line in enumerate((root / text).read_text().splitlines(), 1):
            fields = line.split()
            try:
                index, numbers = int(fields[0]), [float(field) for field in fields[1:]]
            except (ValueError, IndexError):
                problems.append(f"{text}:{number}: {line!r}; expected 'class x y x y x y ...'")
                continue
            if not 0 <= index < len(classes):
                problems.append(f"{text}:{number}: class {index}; expected one of the {len(classes)} that have a name")
            elif len(numbers) == 4:
                problems.append(f"{text}:{number}: a box; expected a polygon of three corners or more")
            else:
                found[image].append(Thing(f"{text}:{number}", classes[index], partial(_draw_yolo, numbers)))
    if problems:
        raise DataError(problems)
    return Annotations("YOLO", classes, found, {})


def _draw_yolo(numbers: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    return rasterize(as_corners(numbers) * [size[1], size[0]], size)


def image_size(path: Path) -> tuple[int, int]:
    """H, W in pixels, as stored."""
    with Image.open(path) as picture:
        return picture.height, picture.width
