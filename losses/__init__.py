"""Losses on the labels and distillation methods, by name."""

from losses.afdcd import AfDCD
from losses.aicsd import AICSD
from losses.at import AT
from losses.base import Method
from losses.cirkd import CIRKD
from losses.composed import Composed
from losses.cwd import CWD
from losses.dist import DIST
from losses.dkd import DKD
from losses.dtkd import DTKD
from losses.fitnet import FitNet
from losses.heteroakd import HeteroAKD
from losses.hmkd import HMKD
from losses.ifvd import IFVD
from losses.kd import KD
from losses.mgd import MGD
from losses.ofa import OFA
from losses.skd import SKD
from models.base import ModelSpec
from utils.names import unknown_name

__all__ = ["METHODS", "Composed", "Method", "build_method"]

METHODS: dict[str, type[Method]] = {
    "afdcd": AfDCD,
    "aicsd": AICSD,
    "at": AT,
    "cirkd": CIRKD,
    "cwd": CWD,
    "dist": DIST,
    "dkd": DKD,
    "dtkd": DTKD,
    "fitnet": FitNet,
    "heteroakd": HeteroAKD,
    "hmkd": HMKD,
    "ifvd": IFVD,
    "kd": KD,
    "mgd": MGD,
    "ofa": OFA,
    "skd": SKD,
}


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
