"""DKD: pixel-wise distillation in two parts: the true class against the others, and the others among themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, LogitMethod
from losses.functional import masked_mean
from losses.labels import Pixels
from models.base import ModelSpec
from utils.names import VOID


def decouple(logits: Tensor, cells: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log(p_y, 1 - p_y), B 2 h w, and log(p_k / (1 - p_y)), B K h w, 0 at k = y, with p = softmax(z / T).

    Args:
        logits: B K h w.
        cells: B h w true classes y; where they are ``VOID``, y is 0.
        temperature: T > 0.
    """
    y = cells.long().masked_fill(cells == VOID, 0)[:, None]
    logits = logits / temperature
    log_p, others = F.log_softmax(logits, dim=1), logits.scatter(1, y, -torch.inf)
    rest = log_p.scatter(1, y, -torch.inf).logsumexp(1, keepdim=True)  # not log(1 - p_y): p_y rounds to 1
    return torch.cat([log_p.gather(1, y), rest], dim=1), F.log_softmax(others, dim=1).scatter(1, y, 0)


def target_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 KL of (p_y, 1 - p_y), mean over compared cells; arguments as of every ``losses.base.Comparison``."""
    (log_s, _), (log_t, _) = (decouple(x, cells, temperature) for x in (student, teacher))
    return temperature**2 * masked_mean((log_t.exp() * (log_t - log_s)).sum(1), cells != VOID)


def nontarget_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 KL of p_k / (1 - p_y) over k != y, mean over compared cells; arguments as of ``losses.base.Comparison``."""
    (_, log_s), (_, log_t) = (decouple(x, cells, temperature) for x in (student, teacher))
    return temperature**2 * masked_mean((log_t.exp() * (log_t - log_s)).sum(1), cells != VOID)


@METHODS.register("dkd")
class DKD(LogitMethod):
    """Decoupled distillation: the two parts of each pixel's KL, each with its own weight.

        L = L_task + target * L_target + nontarget * L_nontarget

    with ``target_divergence`` and ``nontarget_divergence``. Plain distillation is L_target + (1 - p_y) L_nontarget with
    p_y the teacher's probability of the true class: the more certain the teacher, the less weight the other classes
    have. With ``pixels='inside'``, the teacher's most probable class replaces a missing label.

    Zhao, Cui, Song, Qiu, Liang: "Decoupled Knowledge Distillation", CVPR 2022, eq. 6 and 7 (there alpha TCKD + beta
    NCKD), with pixels instead of images. On the labelled cells the loss of github.com/megvii-research/mdistiller
    (``distillers/DKD.py``) is the same (ratio 1, measured), but it subtracts 1000 from the true class's logit where we
    leave the class out, and is not finite where p_y rounds to 1. It grows over the first 20 epochs, a ``curriculum``
    here. Weights 1 and 8 at T = 4 are those for CIFAR-100.

    Args:
        target, nontarget: weights of the terms ``'dkd_target'`` and ``'dkd_nontarget'``, 0 or more.

    Raises:
        ValueError: if the teacher gives no logits or other classes, there is one class only, or a value makes no sense.
    """

    comparisons = {"dkd_target": target_divergence, "dkd_nontarget": nontarget_divergence}

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        target: float = 1.0,
        nontarget: float = 8.0,
        temperature: float = 4.0,
        pixels: Pixels = "labelled",
    ):
        if student.num_classes < 2:
            raise ValueError("the student has one class: there is no other class to compare; choose kd")
        super().__init__(student, teacher, {"dkd_target": target, "dkd_nontarget": nontarget}, temperature, pixels)
