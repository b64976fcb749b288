"""DTKD: at each pixel each network has a temperature of its own, which makes both equally sharp."""

import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, LogitMethod, pixel_divergence
from losses.functional import masked_mean
from losses.labels import Pixels
from models.base import ModelSpec
from utils.names import VOID


def dynamic_temperatures(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T_s = 2 T m_s / (m_s + m_t) and T_t = 2 T m_t / (m_s + m_t), each B 1 h w, m the largest logit of each cell.

    z_s / T_s and z_t / T_t then have the same largest logit, and the mean of T_s and T_t is T.

    Args:
        student, teacher: B K h w, of mean 0 over classes, so that no m is negative.
        temperature: T > 0.
    """
    m_s, m_t = (x.amax(1, keepdim=True).clamp(min=1e-6) for x in (student, teacher))
    return 2 * temperature * m_s / (m_s + m_t), 2 * temperature * m_t / (m_s + m_t)


def dynamic_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T_s T_t KL(softmax(z_t / T_t) || softmax(z_s / T_s)), mean over compared cells.

    The mean over classes is subtracted from the logits first. Arguments as of every ``losses.base.Comparison``.
    """
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    T_s, T_t = dynamic_temperatures(student, teacher, temperature)
    log_s, log_t = F.log_softmax(student / T_s, dim=1), F.log_softmax(teacher / T_t, dim=1)
    divergence = T_s * T_t * (log_t.exp() * (log_t - log_s)).sum(1, keepdim=True)
    return masked_mean(divergence[:, 0], cells != VOID)


@METHODS.register("dtkd")
class DTKD(LogitMethod):
    """Distillation at temperatures computed for each pixel, and distillation at a fixed temperature.

        L = L_task + dynamic * L_dynamic + kd * L_kd

    with ``dynamic_divergence`` and ``losses.base.pixel_divergence``. L_dynamic is 0 if the student's logits are any
    positive multiple of the teacher's; L_kd is 0 only for the multiple 1.

    Wei, Bai: "Dynamic Temperature Knowledge Distillation", arXiv:2404.12711 (its authors have withdrawn the derivation
    of the temperatures, eq. 4 and 5, but not the results). If the logits have mean 0 over classes, both terms are those
    of github.com/JinYu1998/DTKD with pixels instead of images (ratio 1, measured). That code uses the largest logit
    without subtracting the mean: a constant added to all classes changes the temperatures, and they are negative or
    infinite if the largest logits are below 0. Its loss grows over the first 20 epochs, a ``curriculum`` here. Weights
    3 and 1 at T = 4 are its defaults.

    Args:
        dynamic, kd: weights of the terms ``'dtkd_dynamic'`` and ``'dtkd_kd'``, 0 or more.
        temperature: T of both.
    """

    comparisons = {"dtkd_dynamic": dynamic_divergence, "dtkd_kd": pixel_divergence}

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        dynamic: float = 3.0,
        kd: float = 1.0,
        temperature: float = 4.0,
        pixels: Pixels = "labelled",
    ):
        super().__init__(student, teacher, {"dtkd_dynamic": dynamic, "dtkd_kd": kd}, temperature, pixels)
