"""MGD: masked generative distillation: a random part of the student's features must predict all of the teacher's."""

from torch import Tensor, nn

from losses.alignment import MaskedGeneration
from losses.base import METHODS, FeatureMethod
from losses.checks import Pairs, check_weights
from losses.functional import channel_mean, masked_mean
from losses.labels import Pixels
from models.base import ModelSpec


@METHODS.register("mgd")
class MGD(FeatureMethod):
    """Mean squared distance between the teacher's map and the prediction of ``MaskedGeneration``.

        L = L_task + weight * mean (G(M * align(S)) - T)^2

    over compared cells, masked or not, and the teacher's channels. G has 18 C_t^2 weights: 75 million for C_t = 2048.
    Only the masks depend on how a batch is split.

    Yang et al., "Masked Generative Distillation", ECCV 2022, Sec. 3. The authors sum over cells and channels and take
    the mean over images: without void, on one grid and with the same masks C_t h w times ours (measured with
    github.com/yzd-v/MGD). Their weight of 2e-5 on C_t = 2048 and crops of 512 x 512 at stride 8 is ours of
    2e-5 * 2048 * 64 * 64 = 168. Their segmentation code adds the logit term of ``cwd`` at 3: compose the two, with
    ``feature=0`` in ``cwd``.

    Args:
        weight: of the term ``'mgd'``; positive.
        mask_ratio: share of the cells that are masked, in [0, 1).
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 168.0,
        pairs: Pairs = (("stage4", "stage4"),),
        mask_ratio: float = 0.75,
        pixels: Pixels = "labelled",
    ):
        check_weights(weight=weight)
        super().__init__(student, teacher, "mgd", weight, pairs, pixels)
        self.generation = nn.ModuleDict({name: MaskedGeneration(*taps, mask_ratio) for name, taps in self.taps.items()})

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return masked_mean(channel_mean((self.generation[name](student, valid) - teacher).square()), valid)
