"""Reads every image and mask, and decides which value in the masks is which class."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.ids import Color, check_classes
from datasets.listed import distinct_colours
from datasets.pixels import open_image, read_ids
from scripts.preparation.colors import ColorFile
from scripts.preparation.pairs import Pair
from scripts.preparation.problems import DataError, name_some
from utils.names import VOID

Value = int | Color  # of a pixel in a mask
MOST_COLORS = 64  # without a table of colours: more are the sign of blurred edges
VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown", "_ignore_", "__ignore__")


class Sample(NamedTuple):
    """What a pair of files holds.

    Attributes:
        size: H, W in pixels.
        digest: of the image file.
        values: pixels of each value in the mask; None: there is no mask.
    """

    size: tuple[int, int]
    digest: str
    values: dict[Value, int] | None


class Names(NamedTuple):
    """The name of the class of each value, the values without a class, and what was assumed, in sentences."""

    classes: dict[Value, str]
    void: set[Value]
    assumptions: list[str]


class Classes(NamedTuple):
    """The classes: K names, K x 3 RGB colours, value -> train id (255 is void), and what was assumed, in sentences."""

    names: list[str]
    palette: np.ndarray
    table: dict[Value, int]
    in_color: bool
    assumptions: list[str]

    @property
    def options(self) -> dict[str, Any]:
        """Keys of the data section."""
        return {
            "class_names": self.names,
            "palette": [tuple(color) for color in self.palette.tolist()],
            "color_table" if self.in_color else "id_table": self.table,
        }


def read_samples(root: Path, pairs: Sequence[Pair], image_range: tuple[float, float] | None = None) -> list[Sample]:
    """Reads all files whole; draws a bar on a terminal.

    Raises:
        DataError: files cannot be read exactly, or an image and its mask differ in size; names all of them.
    """

    def read(pair: Pair) -> Sample | str:
        try:
            return read_sample(root, pair, image_range)
        except (OSError, ValueError) as error:
            return str(error).replace("set data.image_range=", "give --image-range, which sets data.image_range=")

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(read, pairs), "reading", len(pairs), leave=False, disable=None))
    if problems := [result for result in found if isinstance(result, str)]:
        raise DataError(problems)
    return found


def read_sample(root: Path, pair: Pair, image_range: tuple[float, float] | None = None) -> Sample:
    """Reads one image and its mask.

    Raises:
        ValueError, OSError: a file cannot be read exactly, or the sizes differ.
    """
    size = open_image(root / pair.image, image_range)[:].shape[:2]
    digest = hashlib.blake2b((root / pair.image).read_bytes(), digest_size=16).hexdigest()
    if pair.label is None:
        return Sample(size, digest, None)
    raw = read_ids(root / pair.label)
    if raw.shape[:2] != size:
        raise ValueError(
            f"{root / pair.image} is {size[0]} x {size[1]} (H x W) and its mask {root / pair.label} is "
            f"{raw.shape[0]} x {raw.shape[1]}; expected the same size (as stored: an EXIF rotation is not applied)"
        )
    return Sample(size, digest, count_pixels(raw))


def count_pixels(raw: np.ndarray) -> dict[Value, int]:
    """H W ids or H W 3 colours -> pixels of each value."""
    if raw.ndim == 2:
        counts = np.bincount(raw.ravel())
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    packed, counts = np.unique(raw.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    return {
        (color >> 16, color >> 8 & 255, color & 255): count
        for color, count in zip(packed.tolist(), counts.tolist(), strict=True)
    }


def decide_classes(
    root: Path,
    pairs: Sequence[Pair],
    samples: Sequence[Sample],
    names: Sequence[str] | None = None,
    colors: ColorFile | None = None,
    ignore: Sequence[str] = (),
) -> Classes:
    """Decides the classes from what the masks hold and what the user says.

    Args:
        root: the data folder, for errors.
        pairs: of images and masks.
        samples: what they hold.
        names: of the classes, in the order of their values; None: those in ``colors``, or class_0, class_1, ...
        colors: colours and their names.
        ignore: values or names without a class: ``'255'``, ``'0,0,0'``, ``'Void'``.

    Raises:
        DataError: masks hold both ids and colours or colours that no table names, or the names do not fit the values.
    """
    masks = [(pair.label, sample.values) for pair, sample in zip(pairs, samples, strict=True) if sample.values]
    kinds = {isinstance(next(iter(values)), tuple): mask for mask, values in masks}
    if len(kinds) > 1:
        raise DataError([f"{root / kinds[False]} holds ids and {root / kinds[True]} holds colours; expected one kind"])
    in_color = True in kinds
    found = sorted(set().union(*(values for _, values in masks)))
    if in_color and colors is not None:
        named = _name_by_file(root, masks, colors, ignore)
    elif in_color:
        named = _name_colors(found, names, ignore)
    else:
        named = _name_ids(found, names, colors, ignore)
    order = list(dict.fromkeys(named.classes.values()))
    try:
        check_classes(tuple(order))
    except ValueError as error:
        raise DataError([f"{error}; the masks hold {_list_values(found)}"]) from error
    table = {value: order.index(name) for value, name in named.classes.items()} | dict.fromkeys(named.void, VOID)
    palette = distinct_colours(len(order))
    if in_color:
        first = {name: color for color, name in reversed(named.classes.items())}
        palette = np.array([first[name] for name in order], np.uint8)
    return Classes(order, palette, table, in_color, named.assumptions)


def _name_by_file(root: Path, masks: Sequence[tuple[str, dict]], colors: ColorFile, ignore: Sequence[str]) -> Names:
    if problems := [
        f"{root / mask}: {sum(unknown.values())} pixels have {len(unknown)} colours that {colors.path} does not name, "
        f"most of them RGB {unknown.most_common(1)[0][0]}; add a line for the colour, or paint the pixels anew"
        for mask, values in masks
        if (unknown := Counter({color: count for color, count in values.items() if color not in colors.names}))
    ]:
        raise DataError(problems)
    by_name = {name for name in colors.names.values() if name.lower() in VOID_NAMES}
    void = {color for color, name in colors.names.items() if name in by_name}
    void |= _ignored(ignore, colors.names)
    told = [f"{name!r} is void by its name; the --colors file changes it" for name in sorted(by_name)]
    return Names({color: name for color, name in colors.names.items() if color not in void}, void, told)


def _name_colors(found: Sequence[Color], names: Sequence[str] | None, ignore: Sequence[str]) -> Names:
    if len(found) > MOST_COLORS:
        raise DataError(
            [
                f"the masks hold {len(found)} colours, too many to take each for a class; give the colours of the "
                "classes by --colors FILE, with lines 'R G B name'"
            ]
        )
    void = _ignored(ignore, dict.fromkeys(found, ""))
    kept = [color for color in found if color not in void]
    if names is not None and len(names) != len(kept):
        raise DataError([_wrong_number(names, kept)])
    classes = dict(zip(kept, names or [f"class_{index}" for index in range(len(kept))], strict=True))
    return Names(
        classes,
        void,
        [f"each colour in the masks is a class: {_list_classes(classes)}; --colors and --ignore change it"],
    )


def _name_ids(
    found: Sequence[int], names: Sequence[str] | None, colors: ColorFile | None, ignore: Sequence[str]
) -> Names:
    void = _ignored(ignore, dict.fromkeys(found, ""))
    told = []
    if VOID in found and VOID not in void:
        if len(found) == 2:
            told.append(f"the masks hold {found[0]} and 255 alone, so 255 is a class; --ignore 255 makes it void")
        else:
            void.add(VOID)
            told.append("255 in the masks is void; id_table in the config changes it")
    kept = [value for value in found if value not in void]
    if colors is not None:
        names = list(dict.fromkeys(colors.names.values()))
    if names is None:
        if len(kept) >= VOID:
            raise DataError(
                [
                    f"the masks hold {len(kept)} ids in {kept[0]}..{kept[-1]}, more than the 254 classes that are "
                    "possible; are they numbers of objects instead of classes?"
                ]
            )
        classes = {value: f"class_{value}" for value in kept}
        told.append(
            f"the names of the classes are {_list_classes(classes)}; --classes changes them, --ignore makes ids void"
        )
    elif max(kept, default=0) < len(names):
        classes = {value: name for value, name in enumerate(names) if value not in void}
        told.append(
            f"the names stand for the ids from 0 on: {_list_classes(classes)}; id_table in the config changes it"
        )
    elif len(kept) == len(names):
        classes = dict(zip(kept, names, strict=True))
        told.append(f"the names stand for the ids in the masks: {_list_classes(classes)}; id_table changes it")
    else:
        raise DataError([_wrong_number(names, kept)])
    return Names(classes, void | {VOID} - classes.keys(), told)


def _ignored(ignore: Sequence[str], names: Mapping[Value, str]) -> set[Value]:
    """The values that ``--ignore`` means: by number, by colour or by the name that a file gives."""
    void = set()
    for text in ignore:
        matching = {value for value, name in names.items() if text in (name, _text(value))}
        if not matching:
            raise DataError([f"--ignore {text}: expected one of {_list_values(names)}"])
        void |= matching
    return void


def _wrong_number(names: Sequence[str], kept: Sequence[Value]) -> str:
    return (
        f"{len(names)} classes are named, and the masks hold {len(kept)} values that are not void: "
        f"{_list_values(kept)}; expected one name for each (--classes, --ignore)"
    )


def _list_classes(classes: Mapping[Value, str]) -> str:
    return name_some([f"{_text(value)} = {name}" for value, name in classes.items()], 12)


def _list_values(values: Iterable[Value]) -> str:
    return name_some([_text(value) for value in values], 24)


def _text(value: Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
