"""Self-training: the student learns the confident decisions of its teacher, mostly the average of its own weights."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, LogitMethod
from losses.functional import masked_mean
from losses.labels import Pixels
from models.base import ModelSpec
from utils.names import VOID


def pseudo_labels(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float, threshold: float) -> Tensor:
    """Cross-entropy with the teacher's most probable class, 0 where its probability is not above ``threshold``.

    The mean is over all compared cells, so the term grows as the teacher becomes confident. Arguments as of every
    ``Comparison``; ``temperature`` divides the teacher's logits.
    """
    confidence, decision = (teacher / temperature).softmax(1).max(1)
    loss = F.cross_entropy(student, decision, reduction="none") * (confidence > threshold)
    return masked_mean(loss, cells != VOID)


@METHODS.register("self_training")
class SelfTraining(LogitMethod):
    """``pseudo_labels`` of each pixel: the rival of distillation that needs no teacher network.

        L = L_task + weight * L_self_training

    With ``teacher=dict(weights="ema")`` the teacher is the average of the student's weights (``train.ema``), which is
    Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) with the confidence threshold of FixMatch (Sohn et al., NeurIPS
    2020, equation 4), which UniMatch uses per pixel. Unlike there, both see the same augmented image.

    Args:
        weight: of the term ``'self_training'``, positive.
        threshold: a pixel counts if the teacher's largest probability is above it, 0 <= threshold < 1.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 1.0,
        threshold: float = 0.95,
        pixels: Pixels = "inside",
    ):
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is {threshold}; expected 0 <= threshold < 1")
        super().__init__(student, teacher, {"self_training": weight}, 1.0, pixels)
        self.comparisons = {"self_training": partial(pseudo_labels, threshold=threshold)}
