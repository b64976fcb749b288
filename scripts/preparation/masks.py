"""Makes masks of annotated objects, once: PNG files with a palette, and the names of their classes.

A pixel belongs to a polygon if its centre is inside it (OpenCV's fillPoly would add the border, half a pixel wide).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.listed import distinct_colours
from models.extras import import_extra
from scripts.preparation.annotations import Annotations, Shape, image_size, read_annotations
from scripts.preparation.pairs import IMAGE_FOLDERS
from scripts.preparation.problems import DataError
from utils.names import OUTSIDE, name_some

BACKGROUND = "background"
FOLDER, COLORS = "masks", "colors.txt"
MARGIN = 0.5  # pixels that a corner may lie outside the image, where annotation tools round


def write_masks(root: Path, classes: Sequence[str] | None = None) -> tuple[str, int, list[str]]:
    """Writes ``masks/`` in a folder: for each annotated image a PNG of ids, and ``colors.txt``. All or nothing.

    Pixels of no object are background, id 0; the classes are 1, 2, ... in the order of ``classes`` (None: the file's).
    Where objects overlap, the smaller is on top; of two of the same size, the later in the file.

    Returns:
        The format of the annotations, the number of masks, and the names of the classes with background.

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
    return annotations.format, len(annotations.shapes), names


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
    mask = import_extra("pycocotools.mask", "coco")
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
    names = list(dict.fromkeys([BACKGROUND, *names]))
    if len(names) > OUTSIDE:
        raise DataError([f"{len(names)} classes; expected at most {OUTSIDE}"])
    return names


def as_corners(numbers: Any) -> np.ndarray:
    """Numbers x, y, x, y, ... or points (x, y) -> N x 2 float64, without a last corner that repeats the first.

    Raises:
        ValueError: they are no polygon.
    """
    try:
        corners = np.asarray(numbers, np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"its corners are no pairs of numbers ({error})") from error
    if len(corners) > 1 and (corners[0] == corners[-1]).all():
        corners = corners[:-1]
    if len(corners) < 3:
        raise ValueError(f"it has {len(corners)} corners; expected three or more")
    return corners


def rasterize(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """N x 2 corners, in pixels from the image's top left corner -> H W bool: the pixels of the polygon.

    Raises:
        ValueError: a corner lies outside the image by more than half a pixel, or the polygon crosses itself.
    """
    height, width = size
    outside = ~((corners >= -MARGIN) & (corners <= np.array([width, height]) + MARGIN)).all(1)  # or not a number
    if outside.any():
        x, y = corners[outside][0]
        raise ValueError(f"its corner ({x:g}, {y:g}) is outside the image of {width} x {height} (W x H)")
    corners = corners.clip(0, [width, height])
    if (where := find_crossing(corners)) is not None:
        raise ValueError(f"it crosses itself near ({where[0]:.1f}, {where[1]:.1f})")
    changes = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # The rows whose centre the edge passes, and the first column to the right of it.
        rows = np.arange(np.ceil(min(y0, y1) - 0.5), np.ceil(max(y0, y1) - 0.5), dtype=int)
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            changes[rows, np.ceil(x - 0.5).astype(int).clip(0, width)] += 1
    return changes.cumsum(1)[:, :width] % 2 == 1


def find_crossing(corners: np.ndarray) -> np.ndarray | None:
    """A point (x, y) where two edges of a polygon cross; edges that only touch do not cross."""
    starts, ends = corners, np.roll(corners, -1, axis=0)
    for a, b, later in zip(starts, ends, range(2, len(corners)), strict=False):
        c, d = starts[later:], ends[later:]
        crossing = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
        if crossing.any():
            c, d = c[crossing][0], d[crossing][0]
            return a + (b - a) * _side(c, d, a) / (_side(c, d, a) - _side(c, d, b))
    return None


def _side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Positive on one side of the line from start to end, negative on the other."""
    along, to = end - start, point - start
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
