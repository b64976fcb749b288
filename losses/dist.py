"""DIST: probabilities that correlate with the teacher's over classes and over pixels, instead of being equal."""

import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, LogitMethod
from losses.functional import masked_mean
from losses.labels import Pixels
from models.base import ModelSpec
from utils.names import VOID

FLAT = 1e-4  # the least length that a centred vector is divided by: a constant vector correlates with nothing


def inter_class_distance(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 (1 - Pearson correlation over the classes of softmax(z / T)), mean over compared cells.

    Arguments as of every ``losses.base.Comparison``.
    """
    p, q = (F.softmax(x / temperature, dim=1) for x in (student, teacher))
    p, q = (x - x.mean(1, keepdim=True) for x in (p, q))
    return temperature**2 * masked_mean(1 - F.cosine_similarity(p, q, dim=1, eps=FLAT), cells != VOID)


def intra_class_distance(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 (1 - Pearson correlation over an image's compared cells of softmax(z / T)), mean over classes, then images.

    Arguments as of every ``losses.base.Comparison``. Images without a compared cell do not count.
    """
    valid = (cells != VOID).flatten(1)[:, None]
    number = valid.sum(-1, keepdim=True).clamp(min=1)
    p, q = (F.softmax(x / temperature, dim=1).flatten(2) * valid for x in (student, teacher))
    p, q = ((x - x.sum(-1, keepdim=True) / number) * valid for x in (p, q))
    return temperature**2 * masked_mean((1 - F.cosine_similarity(p, q, dim=-1, eps=FLAT)).mean(1), valid[:, 0].any(-1))


@METHODS.register("dist")
class DIST(LogitMethod):
    """Pearson correlation with a stronger teacher's probabilities.

        L = L_task + inter * L_inter + intra * L_intra

    with ``inter_class_distance`` and ``intra_class_distance``. Both are between 0 (correlation 1) and 2 T^2. A positive
    scale and an offset of the probabilities do not change them.

    Huang, You, Wang, Qian, Xu: "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, eq. 8 to 10. Against
    github.com/hunto/DIST_KD (``segmentation/losses/dist_kd.py``; weights 1 and 1, T = 1), without void:

    - L_inter is the same (ratio 1, measured).
    - L_intra there correlates over the cells of all images of a process at once, here over the cells of each image, so
      that it does not depend on how a batch is split: the same for one image (ratio 1, measured), not for several.
    - There 1e-8 is added to the product of two lengths; here a length below 1e-4 counts as 1e-4. The results agree to
      1e-7 (measured), except where the gradient would overflow half precision.
    - That code adds .4 of the loss of the auxiliary heads. We do not, because a teacher's auxiliary head does not run.

    Args:
        inter, intra: weights of the terms ``'dist_inter'`` and ``'dist_intra'``, 0 or more.
    """

    comparisons = {"dist_inter": inter_class_distance, "dist_intra": intra_class_distance}
    per_image = {"dist_intra"}

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: float = 1.0,
        pixels: Pixels = "labelled",
    ):
        super().__init__(student, teacher, {"dist_inter": inter, "dist_intra": intra}, temperature, pixels)
