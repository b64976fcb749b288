"""What a weights file says of itself, checked before anything believes it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from models.base import Normalization

NUMBER = (int, float)
# Arguments of build_model that a file may name, and the types that they may have.
NETWORK = {
    "backbone": (str,),
    "head": (str,),
    "output_stride": (int, type(None)),
    "width": (int, type(None)),
    "dropout": NUMBER,
    "drop_path": NUMBER,
    "normalization": (str,),
    "aux": (bool,),
}


def _is_list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(fits, value))


def _is_network(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {"backbone", "head"} <= value.keys() <= NETWORK.keys()
        and all(isinstance(entry, NETWORK[name]) for name, entry in value.items())
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


def _is_color(value: Any) -> bool:
    return _is_list_of(value, lambda x: isinstance(x, int) and 0 <= x <= 255) and len(value) == 3


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name, {}), Mapping) for name in ("eval", "train"))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_network, f"backbone, head and others of {', '.join(NETWORK)}"),
    "normalization": (_is_normalization, "mean and std, three numbers each (std > 0), and bgr"),
    "taps": (_is_taps, "channels and stride by name"),
    "class_names": (lambda value: _is_list_of(value, lambda x: isinstance(x, str)), "a list of names"),
    "palette": (lambda value: _is_list_of(value, _is_color), "a list of RGB colours in 0..255"),
    "config": (_is_config, "the run's config"),
}


def check_description(about: Any, source: str) -> None:
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
