"""Losses on the labels and distillation methods, by name."""

from losses.base import Method
from losses.cirkd import CIRKD
from losses.composed import Composed
from losses.hmkd import HMKD
from models.base import ModelSpec, unknown_name

__all__ = ["METHODS", "Composed", "Method", "build_method"]

METHODS: dict[str, type[Method]] = {"cirkd": CIRKD, "hmkd": HMKD}


def build_method(type: str, student: ModelSpec, teacher: ModelSpec, **options) -> Method:
    """The distillation method of this name, sized for two networks.

    Args:
        type: a key of ``METHODS``.
        student, teacher: what the two networks declare.
        **options: the method's own arguments.

    Raises:
        ValueError: if the name is unknown (naming the nearest), or as the method raises.
    """
    if type not in METHODS:
        raise unknown_name("distillation method", type, METHODS)
    return METHODS[type](student, teacher, **options)
