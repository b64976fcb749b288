"""Reads a file that gives the colour of each class."""

import re
from pathlib import Path

from datasets.ids import Color
from scripts.preparation.problems import DataError

NUMBERS = r"(?P<r>\d+)\s*[,;\s]\s*(?P<g>\d+)\s*[,;\s]\s*(?P<b>\d+)"
EXPECTED = "'R G B name' or 'name: R, G, B'"
LINES = (
    re.compile(rf"{NUMBERS}[\s,;:]+(?P<name>\S.*?)"),  # CamVid's label_colors.txt: 64 128 64    Animal
    re.compile(rf"(?P<name>\S.*?)\s*[\s,;:]\s*{NUMBERS}(?:\s*:.*)?"),  # Animal: 64, 128, 64; CVAT's label map for VOC
)


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
