"""What a weights file says of itself, checked before anything believes it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from models.base import Normalization

NUMBER = (int, float)
WIDEST = 2**16  # channels of a head; more would ask for all of the memory before anything is compared
MOST_CLASSES = 254  # labels are uint8, of which two values are taken
LONGEST_NAME = 100  # characters


def _is_share(value: Any) -> bool:
    return isinstance(value, NUMBER) and 0 <= value <= 1


# Arguments of build_model that a file may name, and what they may be.
NETWORK: dict[str, Callable[[Any], bool]] = {
    "backbone": lambda value: isinstance(value, str),
    "head": lambda value: isinstance(value, str),
    "output_stride": lambda value: value in (None, 8, 16, 32),
    "width": lambda value: value is None or (type(value) is int and 0 < value <= WIDEST),
    "dropout": _is_share,
    "drop_path": _is_share,
    "normalization": lambda value: isinstance(value, str),
    "aux": lambda value: isinstance(value, bool),
}


def _is_list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(fits, value))


def _is_network(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {"backbone", "head"} <= value.keys() <= NETWORK.keys()
        and all(NETWORK[name](entry) for name, entry in value.items())
    )


def _is_normalization(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.keys() != set(Normalization._fields):
        return False
    numbers = all(
        _is_list_of(value[name], lambda x: isinstance(x, NUMBER) and math.isfinite(x)) and len(value[name]) == 3
        for name in ("mean", "std")
    )
    return numbers and min(value["std"]) > 0 and isinstance(value["bgr"], bool)


def _is_taps(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(tap, Mapping) and tap.keys() == {"channels", "stride"} for tap in value.values()
    )


def _is_name(value: Any) -> bool:
    """A line of text: what would steer a terminal or fill a picture is none."""
    return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_NAME


def _is_color(value: Any) -> bool:
    return _is_list_of(value, lambda x: isinstance(x, int) and 0 <= x <= 255) and len(value) == 3


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name, {}), Mapping) for name in ("eval", "train"))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_network, f"backbone, head and others of {', '.join(NETWORK)}"),
    "normalization": (_is_normalization, "mean and std, three numbers each (std > 0), and bgr"),
    "taps": (_is_taps, "channels and stride by name"),
    "class_names": (
        lambda value: _is_list_of(value, _is_name) and len(value) <= MOST_CLASSES,
        f"1..{MOST_CLASSES} printable names of at most {LONGEST_NAME} characters",
    ),
    "palette": (lambda value: _is_list_of(value, _is_color), "a list of RGB colours in 0..255"),
    "config": (_is_config, "the run's config"),
    "scale": (lambda value: isinstance(value, NUMBER) and 0 < value < math.inf, "a positive number"),
}


def check_metadata(about: Any, source: str) -> None:
    """Raises ValueError, naming the entry, where ``about`` is not what this code would have written."""
    if not isinstance(about, Mapping):
        raise ValueError(f"{source}: what it says of itself is damaged: found {about!r}; expected a dict")
    for name, (fits, expected) in KINDS.items():
        if name in about and not fits(about[name]):
            found = repr(about[name])
            found = found if len(found) <= 80 else f"{found[:77]}..."
            raise ValueError(f"{source}: what it says of itself is damaged: {name} is {found}; expected {expected}")
    if {"class_names", "palette"} <= about.keys() and len(about["class_names"]) != len(about["palette"]):
        raise ValueError(
            f"{source}: what it says of itself is damaged: {len(about['class_names'])} class_names and "
            f"{len(about['palette'])} colours in its palette"
        )
