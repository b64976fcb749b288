"""FitNet: a learnt linear map of the student's features regresses the teacher's."""

from torch import Tensor, nn

from losses.base import METHODS, FeatureMethod
from losses.checks import Pairs, check_weights
from losses.functional import channel_mean, masked_mean
from losses.labels import Pixels
from models.base import ModelSpec


@METHODS.register("fitnet")
class FitNet(FeatureMethod):
    """Mean squared distance of a learnt linear map of the student's features from the teacher's.

        L = L_task + weight * mean (W S - T)^2

    over compared cells and the teacher's channels; W is a 1x1 convolution.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3: half the sum over cells and channels, which is
    C_t h w / 2 times ours for an image. There W may have a larger kernel and a non-linearity, and a stage learns from
    the hint first and from the task later. Here, as in github.com/winycg/CIRKD, both train together; without void and
    on one grid our value and weight are those of its code (ratio 1, measured); its recipe adds ``kd`` at 1.

    Args:
        weight: of the term ``'fitnet'``; positive.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 10.0,
        pairs: Pairs = (("head", "head"),),
        pixels: Pixels = "labelled",
    ):
        check_weights(weight=weight)
        super().__init__(student, teacher, "fitnet", weight, pairs, pixels)
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(s.channels, t.channels, 1, bias=False) for name, (s, t) in self.taps.items()}
        )

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return masked_mean(channel_mean((self.project[name](student) - teacher).square()), valid)
