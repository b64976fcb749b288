"""AICSD: for each pair of classes, how similar their distributions over the image are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, LogitMethod, pixel_divergence
from losses.functional import masked_mean
from losses.labels import Pixels
from models.base import ModelSpec
from utils.names import VOID


def class_relation(logits: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """B K K: KL(P_i || P_j) of the classes' distributions over an image's valid cells, row i divided by its length.

    P_k = softmax(z_k / T) over cells: where in the image class k is. A row whose length is below 1 (nat) is not
    divided: at the start of training all P_k are nearly uniform, and the gradient would grow as rows get shorter. (On
    CamVid, trained networks have lengths of 10 or more.)

    Args:
        logits: B K h w.
        valid: B h w bool.
        temperature: T > 0.
    """
    void = ~valid.flatten(1)[:, None]
    scores = (logits.flatten(2) / temperature).masked_fill(void, torch.finfo(logits.dtype).min)
    log_p = F.log_softmax(scores, dim=-1)
    cross = log_p.exp() @ log_p.masked_fill(void, 0).mT  # sum over cells of P_i log P_j: no K x K x N tensor
    divergence = cross.diagonal(dim1=1, dim2=2)[..., None] - cross
    return F.normalize(divergence, dim=-1, eps=1.0)  # eps: the least length that is divided by


def relation_distance(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """Mean squared difference of the two ``class_relation``, over pairs of classes, then images.

    Arguments as of every ``losses.base.Comparison``. Images without a compared cell do not count.
    """
    valid = cells != VOID
    S, T = (class_relation(x, valid, temperature) for x in (student, teacher))
    return masked_mean((S - T).square().mean((1, 2)), valid.flatten(1).any(1))


def class_mean_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """``pixel_divergence`` / K: a mean over compared cells and classes."""
    return pixel_divergence(student, teacher, cells, temperature) / student.shape[1]


@METHODS.register("aicsd")
class AICSD(LogitMethod):
    """Inter-class similarity distillation, and pixel-wise distillation.

        L = L_task + relation * L_relation + pixel * L_pixel

    with ``relation_distance`` and ``class_mean_divergence``. A constant added to one class's map does not change
    L_relation.

    Mansourian, Ahmadi, Kasaei: "AICSD: Adaptive inter-class similarity distillation for semantic segmentation",
    Multimedia Tools and Applications 2025, arXiv:2308.04243. Written after its abstract (we could not read the full
    text) and github.com/AmirMansurian/AICSD (``distiller.py``). L_pixel has the same value as that code (ratio 1,
    measured). L_relation differs:

    - Here it is KL(P_i || P_j) of all pairs i, j. That code passes probabilities where log-probabilities are expected,
      takes the softmax over the rows of each column of cells, and copies i < j to i > j, so that the order of the
      classes matters. With these three corrected there, and no row below 1, one image has the same value (ratio 1,
      measured).
    - Here each image has its own matrix, so that the loss does not depend on how a batch is split. There it is the mean
      matrix of B images, and the loss is divided by B once more (for B equal images: ours / B, measured).
    - So its weight of 9500 has another unit, as its rows hardly differ. On networks trained on CamVid our gradient, of
      four images, is 25 to 40 times as large: our 250 is about its 9500. L_pixel's weight of 10 is the same.

    The *adaptive* part, weights that move from L_pixel to L_task and L_relation during the training, is a
    ``curriculum`` here: factors from 1 to 0 for ``'aicsd_pixel'``, from 0 to 1 for ``'aicsd_relation'`` and ``'task'``.

    Args:
        relation, pixel: weights of the terms ``'aicsd_relation'`` and ``'aicsd_pixel'``, 0 or more.
        temperature: T of both.
    """

    comparisons = {"aicsd_relation": relation_distance, "aicsd_pixel": class_mean_divergence}
    per_image = {"aicsd_relation"}

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        relation: float = 250.0,
        pixel: float = 10.0,
        temperature: float = 1.0,
        pixels: Pixels = "labelled",
    ):
        super().__init__(student, teacher, {"aicsd_relation": relation, "aicsd_pixel": pixel}, temperature, pixels)
