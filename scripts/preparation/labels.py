"""Reads every mask and the file of colours, and decides which value in the masks is which class."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.census import Value, count_values
from datasets.ids import Color
from datasets.listed import distinct_colours
from datasets.pixels import read_ids
from scripts.preparation.annotations import image_size
from scripts.preparation.pairs import Pair
from scripts.preparation.problems import DataError
from utils.names import VOID, name_some

MOST_COLORS, MOST_IDS = 64, VOID - 1  # more colours without a table are the sign of blurred edges
NUMBERS = r"(?P<r>\d+)\s*[,;\s]\s*(?P<g>\d+)\s*[,;\s]\s*(?P<b>\d+)"
EXPECTED = "'R G B name' or 'name: R, G, B'"
LINES = (
    re.compile(rf"{NUMBERS}[\s,;:]+(?P<name>\S.*?)"),  # CamVid's label_colors.txt: 64 128 64    Animal
    re.compile(rf"(?P<name>\S.*?)\s*[\s,;:]\s*{NUMBERS}(?:\s*:.*)?"),  # Animal: 64, 128, 64; CVAT's label map for VOC
)
VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown", "_ignore_", "__ignore__")


class Sample(NamedTuple):
    """H, W in pixels and digest of an image file, and the pixels of each value in its mask (None: no mask)."""

    size: tuple[int, int]
    digest: str
    values: dict[Value, int] | None


def read_samples(root: Path, pairs: Sequence[Pair]) -> dict[Pair, Sample]:
    """Reads all masks whole; draws a bar on a terminal. The images are only hashed: training's check reads them whole.

    Raises:
        DataError: files cannot be read exactly; names all of them.
    """

    def read(pair: Pair) -> Sample | str:
        image = root / pair.image
        try:
            digest = hashlib.blake2b(image.read_bytes(), digest_size=16).hexdigest()
            if pair.label is None:
                return Sample(image_size(image), digest, None)
            raw = read_ids(root / pair.label)
            counts = count_values(raw, np.zeros(raw.shape[:2], np.uint8))  # nobody knows the classes yet
            return Sample(image_size(image), digest, {value: pixels for (value, _), pixels in counts.items()})
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(read, pairs), "reading", len(pairs), leave=False, disable=None))
    if problems := [result for result in found if isinstance(result, str)]:
        raise DataError(problems)
    return dict(zip(pairs, found, strict=True))


def read_colors(path: Path) -> dict[Color, str]:
    """Colour -> name, in the order of the lines ``R G B name`` or ``name: R, G, B``; several colours may have one name.

    Empty lines, comments (#) and a first line of titles are left out.

    Raises:
        DataError: the file is missing, a line is neither, or a colour is there twice or out of range.
    """
    if not path.is_file():
        raise DataError([f"--colors {path} is missing; expected a file with lines {EXPECTED}"])
    names: dict[Color, str] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or (number == 1 and not re.search(r"\d", line)):
            continue
        match = next(filter(None, (pattern.fullmatch(line) for pattern in LINES)), None)
        if match is None:
            problems.append(f"{path}:{number}: {line!r}; expected {EXPECTED}")
            continue
        color = (int(match["r"]), int(match["g"]), int(match["b"]))
        if max(color) > 255:
            problems.append(f"{path}:{number}: {line!r} has a level above 255; expected R, G and B in 0..255")
        elif color in names:
            problems.append(f"{path}:{number}: {color} is the colour of {names[color]!r} already; keep one line")
        names[color] = match["name"].strip("'\"")
    if problems or not names:
        raise DataError(problems or [f"{path} names no colour; expected lines {EXPECTED}"])
    return names


def decide_classes(
    samples: Mapping[Pair, Sample],
    names: Sequence[str] | None = None,
    colors: Mapping[Color, str] | None = None,
    ignore: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Decides the classes from what the masks hold and what the user says.

    Args:
        names: of the classes, in the order of their values; None: those in ``colors``, or class_0, class_1, ...
        ignore: values or names without a class: ``'255'``, ``'0,0,0'``, ``'Void'``.

    Returns:
        Keys of the data section (class_names, palette and a table), and what was assumed, in sentences.

    Raises:
        DataError: masks hold both ids and colours or colours that no table names, or the names do not fit the values.
    """
    masks = {pair.label: sample.values for pair, sample in samples.items() if sample.values}
    kinds = {isinstance(next(iter(values)), tuple): mask for mask, values in masks.items()}
    if len(kinds) > 1:
        raise DataError([f"{kinds[False]} holds ids and {kinds[True]} holds colours; expected one kind"])
    in_color = True in kinds
    key = "color_table" if in_color else "id_table"
    found = sorted(set().union(*masks.values()))
    by_file = in_color and colors is not None
    void = _values_of(ignore, colors if by_file else dict.fromkeys(found, ""))
    assumptions = []
    if by_file:
        _refuse_unknown_colors(masks, colors)
        by_name = {color: name for color, name in colors.items() if name.lower() in VOID_NAMES}
        void |= by_name.keys()
        assumptions += [f"{name!r} is void by its name; the --colors file changes it" for name in by_name.values()]
        classes = {color: name for color, name in colors.items() if color not in void}
    else:
        if VOID in found and VOID not in void and len(found) == 2:
            assumptions.append(f"the masks hold {found[0]} and 255 alone: 255 is a class; --ignore 255 makes it void")
        elif VOID in found:
            void.add(VOID)
            assumptions.append("255 in the masks is void; id_table in the config changes it")
        named = names if colors is None else list(dict.fromkeys(colors.values()))
        classes = _name_values([value for value in found if value not in void], void, named, in_color)
        listed = name_some([f"{_text(value)} = {name}" for value, name in classes.items()], 12)
        assumptions.append(f"{listed}; --classes, --colors, --ignore or, in the config, {key} changes it")
    order = list(dict.fromkeys(classes.values()))
    void |= set() if in_color else {VOID} - classes.keys()
    table = {value: order.index(name) for value, name in classes.items()} | dict.fromkeys(void, VOID)
    first = {name: value for value, name in reversed(classes.items())}
    palette = [first[name] for name in order] if in_color else list(map(tuple, distinct_colours(len(order)).tolist()))
    return {"class_names": order, "palette": palette, key: table}, assumptions


def _refuse_unknown_colors(masks: Mapping[str, Mapping[Value, int]], colors: Mapping[Color, str]) -> None:
    unknown = {mask: {color: n for color, n in values.items() if color not in colors} for mask, values in masks.items()}
    problems = [
        f"{mask}: {sum(counts.values())} pixels have {len(counts)} colours that --colors does not name, most of them "
        f"RGB {max(counts, key=counts.get)}; add a line for the colour, or paint the pixels anew"
        for mask, counts in unknown.items()
        if counts
    ]
    if problems:
        raise DataError(problems)


def _name_values(
    kept: Sequence[Value], void: set[Value], names: Sequence[str] | None, in_color: bool
) -> dict[Value, str]:
    """The class of each value that is not void."""
    if len(kept) > (MOST_COLORS if in_color else MOST_IDS):
        advice = "give the colours of the classes by --colors FILE" if in_color else "are they numbers of objects?"
        raise DataError([f"the masks hold {len(kept)} values, too many to take each for a class; {advice}"])
    if names is None:
        return {value: f"class_{index if in_color else value}" for index, value in enumerate(kept)}
    if not in_color and max(kept, default=0) < len(names):  # the names stand for 0, 1, ...
        return {value: name for value, name in enumerate(names) if value not in void}
    if len(names) != len(kept):
        values = f"the masks hold {len(kept)} values that are not void: {_list_values(kept)}"
        raise DataError([f"{len(names)} classes are named, and {values}; expected one name for each"])
    return dict(zip(kept, names, strict=True))


def _values_of(ignore: Sequence[str], names: Mapping[Value, str]) -> set[Value]:
    """The values that ``--ignore`` means: by number, by colour or by the name that a file gives."""
    void = set()
    for text in ignore:
        matching = {value for value, name in names.items() if text in (name, _text(value))}
        if not matching:
            raise DataError([f"--ignore {text}: expected one of {_list_values(names)}"])
        void |= matching
    return void


def _list_values(values: Iterable[Value]) -> str:
    return name_some([_text(value) for value in values], 24)


def _text(value: Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
