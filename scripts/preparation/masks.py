"""Makes masks of annotated objects, once: PNG files with a palette, and the names of their classes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.listed import distinct_colours
from scripts.preparation.annotations import Annotations, Shape, image_size, read_annotations
from scripts.preparation.pairs import IMAGE_FOLDERS
from scripts.preparation.polygons import as_corners, rasterize
from scripts.preparation.problems import DataError, name_some
from utils.names import OUTSIDE

BACKGROUND = "background"
FOLDER, COLORS = "masks", "colors.txt"


class Written(NamedTuple):
    """What ``write_masks`` wrote."""

    format: str
    count: int
    classes: list[str]


def write_masks(root: Path, classes: Sequence[str] | None = None) -> Written:
    """Writes ``masks/`` in a folder: for each annotated image a PNG of ids, and ``colors.txt``. All or nothing.

    Pixels of no object are background, id 0; the classes are 1, 2, ... Where objects overlap, the smaller is on top; of
    two of the same size, the later in the file.

    Args:
        root: the folder.
        classes: names, in the order of their ids; None: the file's.

    Raises:
        DataError: the masks are there already, or an annotation is wrong; names all that are.
    """
    target = root / FOLDER
    if target.exists():
        raise DataError([f"{target} exists, and nothing is overwritten; move it away to make the masks anew"])
    annotations = read_annotations(root, classes)
    names = _number_classes(annotations, classes)
    palette = distinct_colours(len(names))

    def draw(image: str) -> tuple[np.ndarray, list[str]]:
        return draw_mask(image_size(root / image), annotations.shapes[image], names)

    problems, owners = [], {}
    with TemporaryDirectory(prefix=".masks-", dir=root) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        drafts = Path(folder) / FOLDER
        results = zip(annotations.shapes, pool.map(draw, annotations.shapes), strict=True)
        for image, (mask, wrong) in tqdm(results, "masks", len(annotations.shapes), leave=False, disable=None):
            problems += [f"{image}: {text}" for text in wrong]
            picture = Image.fromarray(mask)
            picture.putpalette(palette.ravel().tolist())
            path = drafts / mask_path(image)
            if (other := owners.setdefault(path, image)) != image:
                problems.append(f"{other} and {image} would have the same mask {FOLDER}/{mask_path(image)}; rename one")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        if problems:
            raise DataError(problems)
        lines = [f"{red} {green} {blue} {name}\n" for (red, green, blue), name in zip(palette, names, strict=True)]
        (drafts / COLORS).write_text("".join(lines), encoding="utf-8")
        drafts.replace(target)
    return Written(annotations.format, len(annotations.shapes), names)


def draw_mask(size: tuple[int, int], shapes: Sequence[Shape], names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """H W uint8 ids of all objects, the larger below the smaller, and the problems."""
    drawn, problems = [], []
    for shape in shapes:
        try:
            pixels = _draw_outline(shape.outline, size)
        except (ValueError, KeyError, TypeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else error
            problems.append(f"{shape.source} ({shape.category}): {what}")
            continue
        drawn.append((int(pixels.sum()), names.index(shape.category), pixels))
    mask = np.zeros(size, np.uint8)
    for _, index, pixels in sorted(drawn, key=lambda entry: -entry[0]):
        mask[pixels] = index
    return mask, problems


def _draw_outline(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """H W bool: the union of polygons, or COCO's run lengths."""
    if not outline:
        raise ValueError("it has no polygon (a box alone is not enough)")
    if not isinstance(outline, dict):
        return np.any([rasterize(as_corners(polygon), size) for polygon in outline], axis=0)
    if tuple(outline["size"]) != size:
        raise ValueError(f"its run lengths are for {outline['size']} (H, W), and the image is {list(size)}")
    plain = isinstance(outline["counts"], list)
    if plain and sum(outline["counts"]) != size[0] * size[1]:
        raise ValueError(f"its run lengths add up to {sum(outline['counts'])} pixels, not {size[0] * size[1]}")
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ValueError("run lengths need pycocotools: pip install '.[coco]'") from error
    return mask.decode(mask.frPyObjects(outline, *size) if plain else outline).astype(bool)


def mask_path(image: str) -> PurePosixPath:
    """The mask of an image in ``masks/``: the same path, without a first folder such as ``images``."""
    folder, _, rest = image.partition("/")
    return PurePosixPath(rest if rest and folder.lower() in IMAGE_FOLDERS else image).with_suffix(".png")


def _number_classes(annotations: Annotations, classes: Sequence[str] | None) -> list[str]:
    """All names in the order of their ids: background, then ``classes`` or the file's."""
    names = list(annotations.categories if classes is None else classes)
    used = {shape.category for shapes in annotations.shapes.values() for shape in shapes}
    if unnamed := sorted(used - set(names)):
        raise DataError([f"the categories {name_some(unnamed)} are not in --classes {' '.join(names)}; add them"])
    if len(set(names)) < len(names):
        raise DataError([f"a class has the same name as another: {', '.join(names)}; rename one"])
    names = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
    if len(names) > OUTSIDE:
        raise DataError([f"{len(names)} classes; expected at most {OUTSIDE}"])
    return names
