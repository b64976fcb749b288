"""AT: attention transfer: the student learns where in an image the teacher's features are strong."""

import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, FeatureMethod
from losses.checks import Pairs, check_weights
from losses.functional import channel_mean, masked_mean
from losses.labels import Pixels
from models.base import ModelSpec


def attention(x: Tensor) -> Tensor:
    """B C h w -> B h w: mean over channels of the squares, divided by its L2 norm over the cells of each image."""
    return F.normalize(channel_mean(x.square()).flatten(1)).view(len(x), *x.shape[-2:])


@METHODS.register("at")
class AT(FeatureMethod):
    """Mean squared distance of the two sides' ``attention``.

        L = L_task + weight * mean_p (a(S)_p - a(T)_p)^2

    over the compared cells p of all images; all other cells are 0 in both norms. Neither the widths nor the lengths of
    the features matter, and nothing is learnt. A vector of length 1 has smaller elements if it has more of them: on a
    grid with twice the rows and columns the loss is a quarter, and the weight should be four times as large.

    Zagoruyko, Komodakis: "Paying More Attention to Attention", ICLR 2017, activation-based transfer with the mapping
    F^2_sum, Eq. 2. There the pairs add up, with beta / 2 times the distance itself; the authors' code squares the
    distance and takes the mean, as here. Without void and on one grid our value and weight are those of
    github.com/winycg/CIRKD (ratio 1, measured); its recipe adds ``kd`` at 1. The paper resizes attention maps that
    differ in size; here the teacher's features are resized, as in every method.

    Args:
        weight: of the term ``'at'``; positive.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 10000.0,
        pairs: Pairs = (("head", "head"),),
        pixels: Pixels = "labelled",
    ):
        check_weights(weight=weight)
        super().__init__(student, teacher, "at", weight, pairs, pixels)

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return masked_mean((attention(student) - attention(teacher)).square(), valid)
