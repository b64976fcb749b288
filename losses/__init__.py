"""Losses on the labels and distillation methods, by name."""

# Each module registers its method.
from losses import (
    afdcd,
    aicsd,
    at,
    cirkd,
    cwd,
    dist,
    dkd,
    dtkd,
    fitnet,
    heteroakd,
    hmkd,
    ifvd,
    kd,
    mgd,
    ofa,
    self_training,
    skd,
)  # fmt: skip
from losses.base import METHODS, Method
from losses.composed import Composed
from models.base import ModelSpec


def build_method(type: str, student: ModelSpec, teacher: ModelSpec, **options) -> Method:
    """The distillation method of this name, sized for two networks, with its own arguments.

    Raises:
        ValueError: if the name is unknown (naming the nearest), or as the method raises.
    """
    return METHODS[type](student, teacher, **options)
