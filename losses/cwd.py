"""CWD: channel-wise distillation: the student learns where in an image each channel is active."""

import torch
from torch import Tensor, nn

from losses.base import METHODS, FeatureMethod, on_student_grid
from losses.checks import Pairs, check_logits, check_weights
from losses.functional import fill_void, full_precision, masked_mean
from losses.labels import Labels, Pixels
from models.base import ModelSpec, SegOutput, Tap


def channel_divergence(student: Tensor, teacher: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t_c / T) || softmax(s_c / T)) over an image's valid cells, mean over channels c and images.

    Images without a valid cell are left out.

    Args:
        student, teacher: B C h w on one grid.
        valid: B h w bool.
        temperature: T > 0.
    """
    log_s, log_t = (
        # The lowest finite number, not -inf: an image without a valid cell then has a uniform softmax, not NaN.
        # Cells before channels, B N C: the memory order of a channels_last map.
        fill_void(x / temperature, valid, torch.finfo(x.dtype).min).permute(0, 2, 3, 1).flatten(1, 2).log_softmax(1)
        for x in (student, teacher)
    )
    divergence = (log_t.exp() * (log_t - log_s)).sum(1).mean(1)
    return temperature**2 * masked_mean(divergence, valid.flatten(1).any(1))


@METHODS.register("cwd")
class CWD(FeatureMethod):
    """Channel-wise distillation of features and of logits, both by ``channel_divergence``.

        L = L_task + feature * L_feature + logit * L_logit

    If the widths of a pair differ, a learnt 1x1 convolution first brings the student's features to the teacher's
    width. The value depends neither on a constant added to a channel (so the convolution has no bias) nor on the grid's
    resolution.

    Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, Sec. 3 (T^2 / C times the sum
    of the channels' divergences). Without void, on one grid and with equal widths our values are those of the authors'
    code, github.com/irfanICMLL/TorchDistiller, and of github.com/winycg/CIRKD (ratio 1, measured). Differences:

    - With different widths the feature term of CIRKD is C_t / C_s times ours, because it divides by the student's
      width. The authors divide by the teacher's width, as we do, but project by conv-BN-ReLU.
    - Both take the logarithm of a softmax, which is infinite after an underflow; here it is ``log_softmax``.
    - CIRKD has weights of 5 and .3 for SegFormer. Its recipe adds ``kd`` at 1 and an adversarial loss.

    Args:
        feature, logit: weights of the terms ``'cwd_feature'`` and ``'cwd_logit'``, 0 or more.
        pairs: (teacher's tap, student's tap) of each feature term; see ``FeatureMethod``.
        temperature: T of both.

    Raises:
        ValueError: if a tap is unknown, a pair is repeated or missing, a value makes no sense, or ``logit`` is on and
            the teacher gives no logits or other classes.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        feature: float = 50.0,
        logit: float = 3.0,
        pairs: Pairs = (("head", "head"),),
        temperature: float = 4.0,
        pixels: Pixels = "labelled",
    ):
        check_weights(feature=feature, logit=logit)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected more than 0")
        super().__init__(student, teacher, "cwd_feature", feature, pairs, pixels)
        self.temperature = temperature
        self.project = nn.ModuleDict(
            {
                name: nn.Identity() if s.channels == t.channels else nn.Conv2d(s.channels, t.channels, 1, bias=False)
                for name, (s, t) in self.taps.items()
            }
        )
        self.logits = Tap(student.num_classes, student.taps["head"].stride)
        if logit:
            check_logits(self, student, teacher, "set logit=0")
            self.weights["cwd_logit"] = float(logit)

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        terms = super().forward(student, teacher, labels)
        if "cwd_logit" in self.weights:
            with full_precision(student.logits):
                taps = self.logits, self.logits
                maps = on_student_grid(student.logits, teacher.logits, labels, taps, self.pixels)
                terms["cwd_logit"] = channel_divergence(*maps, self.temperature)
        return terms

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return channel_divergence(self.project[name](student), teacher, valid, self.temperature)

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Images with a compared cell on the student's grid."""
        taps = {name: self.taps[name][0] if name in self.taps else self.logits for name in self.weights}
        return {name: labels.at(tap.stride).count_images(self.pixels) for name, tap in taps.items()}
