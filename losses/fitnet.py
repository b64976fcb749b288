"""FitNet: the student's features regress the teacher's; and what the methods that compare feature maps share."""

from torch import Tensor, nn

from losses.base import METHODS, FeatureMethod
from losses.checks import Pairs, check_weights
from losses.functional import channel_mean, masked_mean
from models.base import ModelSpec


@METHODS.register("fitnet")
class FitNet(FeatureMethod):
    """Mean squared distance of a learnt linear map of the student's features from the teacher's.

        L = L_task + weight * mean (W S - T)^2

    over valid cells and the teacher's channels; W is a 1x1 convolution.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3, which halves the sum over cells and channels:
    C_t h w / 2 times ours for an image. There W may have a larger kernel and a non-linearity, and the hint trains a
    stage before the task. Here, as in github.com/winycg/CIRKD, both train together; without void and on one grid our
    value is that of its code (ratio 1, measured), as is the weight; its recipe adds ``kd`` at 1.

    Args:
        student, teacher: what the two networks declare.
        weight: of the term ``'fitnet'``; positive.
        pairs: (teacher's tap, student's tap) of each comparison; see ``FeatureMethod``.

    Raises:
        ValueError: if the weight is not positive, a tap is unknown, or a pair is repeated or missing.
    """

    def __init__(
        self, student: ModelSpec, teacher: ModelSpec, weight: float = 10.0, pairs: Pairs = (("head", "head"),)
    ):
        check_weights(weight=weight)
        super().__init__(student, teacher, "fitnet", weight, pairs)
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(s.channels, t.channels, 1, bias=False) for name, (s, t) in self.taps.items()}
        )

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return masked_mean(channel_mean((self.project[name](student) - teacher).square()), valid)
