"""Reads the objects of each image from COCO JSON, labelme JSON or YOLO files."""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from scripts._inputs import IMAGES, files_below
from scripts.preparation.problems import DataError
from utils.names import name_some


class Shape(NamedTuple):
    """One annotated object: the file and the place in it, for errors; its class; and its outline.

    An outline is a list of polygons in pixels, each of numbers x, y, x, y, ... or of points (x, y); or COCO's run
    lengths, a dict.
    """

    source: str
    category: str
    outline: Any


@dataclass
class Annotations:
    """What a folder's annotation files of one format hold."""

    format: str
    categories: list[str] = field(default_factory=list)  # names, in the order of the ids
    shapes: dict[str, list[Shape]] = field(default_factory=dict)  # by image, in the order of the file
    problems: list[str] = field(default_factory=list)  # one sentence each


def read_annotations(root: Path, classes: Sequence[str] | None = None) -> Annotations:
    """Finds and reads the annotation files below a folder.

    Args:
        classes: names of the classes, which YOLO's numbers need; None: YOLO's ``classes.txt``.

    Raises:
        DataError: there are none, or two kinds of them, or a file is wrong.
    """
    files = [path.as_posix() for path in files_below(root)]
    images = defaultdict(list)  # by file name
    for name in files:
        if name.lower().endswith(IMAGES):
            images[PurePosixPath(name).name].append(name)
    documents = {name: _load_json(root / name) for name in files if name.lower().endswith(".json")}
    coco = _with_keys(documents, {"images", "annotations", "categories"})
    labelme = _with_keys(documents, {"shapes", "imagePath"})
    yolo = {} if coco or labelme else _yolo_files(itertools.chain(*images.values()), set(files))
    names = name_some([*coco, *labelme, *yolo.values()])
    try:
        if coco and not labelme:
            result = _read_coco(root, coco, images)
        elif labelme and not coco:
            result = _read_labelme(root, labelme, images)
        elif yolo:
            result = _read_yolo(root, yolo, classes)
        else:
            kinds = "COCO and labelme" if coco else f"{len(documents)} other"
            raise DataError(
                [f"{root} has {kinds} JSON files; expected one kind of polygons: COCO JSON (images, annotations, "
                 "categories), labelme JSON (shapes, imagePath), or YOLO's .txt files beside the images or in labels/"]
            )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError([f"{names}: a part is not as its format says ({type(error).__name__}: {error})"]) from error
    if result.problems or not any(result.shapes.values()):
        raise DataError(result.problems or [f"{names}: holds no object at all"])
    return result


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        what = "it is empty" if not path.stat().st_size else str(error)
        raise DataError([f"{path} is not JSON ({what}); write it again or move it away"]) from error


def _with_keys(documents: dict[str, Any], keys: set[str]) -> dict[str, dict]:
    return {name: found for name, found in documents.items() if isinstance(found, dict) and keys <= found.keys()}


def _locate(file_name: str, document: str, images: Mapping[str, list[str]], problems: list[str]) -> str | None:
    """The image that a document means: from the document's own folder, or else the one path that ends so."""
    own = (PurePosixPath(document).parent / file_name).as_posix()
    found = [name for name in images.get(PurePosixPath(file_name).name, []) if f"/{name}".endswith(f"/{file_name}")]
    if own in found:
        return own
    if len(found) > 1:  # instances_train.json means images/train
        found = [name for name in found if PurePosixPath(name).parent.name in PurePosixPath(document).stem] or found
    if len(found) == 1:
        return found[0]
    problems.append(f"{document}: image {file_name} is {f'in {len(found)} places' if found else 'missing'}")
    return None


def _check_size(path: Path, height: int | None, width: int | None) -> list[str]:
    """The problem if an image has not the size for which it was annotated (None: not stated)."""
    size = image_size(path)
    if (height or size[0], width or size[1]) == size:
        return []
    return [f"{path} is {size[0]} x {size[1]} (H x W), and was annotated as {height} x {width}"]


def _read_coco(root: Path, documents: dict[str, dict], images: Mapping[str, list[str]]) -> Annotations:
    found = Annotations("COCO JSON")
    categories = set()
    for name, document in documents.items():
        names = {entry["id"]: entry["name"] for entry in document["categories"]}
        categories |= set(names.items())
        paths = {}
        for entry in document["images"]:
            image = paths[entry["id"]] = _locate(entry["file_name"], name, images, found.problems)
            if image is not None:
                found.shapes.setdefault(image, [])
                found.problems += _check_size(root / image, entry.get("height"), entry.get("width"))
        for entry in document["annotations"]:
            source, image = f"{name}: annotation {entry.get('id')}", paths[entry["image_id"]]
            if entry["category_id"] not in names:
                found.problems.append(f"{source} has the category {entry['category_id']}, which has no name")
            elif image is not None:
                found.shapes[image].append(Shape(source, names[entry["category_id"]], entry.get("segmentation")))
    found.categories = list(dict.fromkeys(name for _, name in sorted(categories)))
    return found


def _read_labelme(root: Path, documents: dict[str, dict], images: Mapping[str, list[str]]) -> Annotations:
    found = Annotations("labelme JSON")
    for name, document in documents.items():
        path = PurePosixPath(document["imagePath"].replace("\\", "/")).name
        if (image := _locate(path, name, images, found.problems)) is None:
            continue
        found.problems += _check_size(root / image, document.get("imageHeight"), document.get("imageWidth"))
        shapes = found.shapes.setdefault(image, [])
        for number, entry in enumerate(document["shapes"]):
            source, points = f"{name}: shape {number}", entry["points"]
            kind = entry.get("shape_type", "polygon")
            if kind == "rectangle" and len(points) == 2:
                (x0, y0), (x1, y1) = points
                points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
            elif kind != "polygon":
                found.problems.append(f"{source} is a {kind}; expected a polygon, or a rectangle of two corners")
            shapes.append(Shape(source, entry["label"], [points]))
    found.categories = sorted({shape.category for shapes in found.shapes.values() for shape in shapes})
    return found


def _yolo_files(images: Iterable[str], files: set[str]) -> dict[str, str]:
    """Each image with its text file: beside it, or in labels/ where the image is in images/."""
    found = {}
    for image in images:
        text = PurePosixPath(image).with_suffix(".txt").as_posix()
        for path in (text, re.sub(r"(^|/)images/", r"\1labels/", text)):
            if path in files:
                found.setdefault(image, path)
    return found


def _read_yolo(root: Path, files: dict[str, str], classes: Sequence[str] | None) -> Annotations:
    names = root / "classes.txt"
    if classes is None and not names.is_file():
        raise DataError([f"YOLO's files hold numbers of classes: give their names by --classes, or in {names}"])
    classes = names.read_text(encoding="utf-8").splitlines() if classes is None else classes
    found = Annotations("YOLO", [name.strip() for name in classes if name.strip()])
    for image, text in files.items():
        height, width = image_size(root / image)
        found.shapes[image] = []
        for number, line in enumerate((root / text).read_text().splitlines(), 1):
            source = f"{text}:{number}"
            try:
                index, *numbers = int(line.split()[0]), *map(float, line.split()[1:])
            except (ValueError, IndexError):
                found.problems.append(f"{source}: {line!r}; expected 'class x y x y x y ...'")
                continue
            if not 0 <= index < len(found.categories):
                found.problems.append(f"{source}: class {index}; expected 0..{len(found.categories) - 1}")
            else:
                polygon = [value * (height if place % 2 else width) for place, value in enumerate(numbers)]
                found.shapes[image].append(Shape(source, found.categories[index], [polygon]))
    return found


def image_size(path: Path) -> tuple[int, int]:
    """H, W in pixels, as stored."""
    with Image.open(path) as picture:
        return picture.height, picture.width
