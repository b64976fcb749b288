"""KD: the class distribution of each pixel; and what all methods that compare logits alone have in common."""

from collections.abc import Callable, Set
from typing import ClassVar

from torch import Tensor

from losses.base import Method
from losses.checks import check_classes, check_shape, check_weights
from losses.functional import (
    IGNORE_INDEX,
    as_float,
    fill_void,
    full_precision,
    kl_divergence,
    resize,
    shrink_labels,
    tap_grid,
)
from models.base import ModelSpec, SegOutput

# (student's logits, teacher's logits, cells, temperature) -> scalar: both B K h w on one grid and 0 at void cells,
# cells B h w class ids, 255 where void.
Comparison = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def pixel_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the class distributions, mean over valid cells; arguments as of every ``Comparison``."""
    return kl_divergence(student, teacher, cells != IGNORE_INDEX, temperature)


class LogitMethod(Method):
    """A sum of comparisons of the two networks' logits, on the student's grid. Nothing is learnt.

    The teacher's logits are resized to that grid, bilinearly. Void cells, by the label at their centre, are 0 on both
    sides before anything is compared, so that what the networks say there changes neither value nor gradient.

    Args:
        student, teacher: what the two networks declare.
        weights: of each of ``comparisons``, 0 or more.
        temperature: T.

    Raises:
        ValueError: if the class counts differ, or a value makes no sense.
    """

    comparisons: ClassVar[dict[str, Comparison]]
    per_image: ClassVar[Set[str]] = frozenset()  # terms that are means over images; the others are over cells

    def __init__(self, student: ModelSpec, teacher: ModelSpec, weights: dict[str, float], temperature: float):
        super().__init__()
        check_classes(student, teacher)
        check_weights(**weights)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected temperature > 0")
        self.num_classes, self.stride = student.num_classes, student.taps["head"].stride
        self.weights = {term: float(weight) for term, weight in weights.items() if weight}
        self.temperature = temperature

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms (see ``Method.forward``)."""
        s, t = student.logits, teacher.logits.detach()
        check_shape("the student's logits", s, self.num_classes, self.stride, labels)
        cells = shrink_labels(labels, s.shape[-2:])
        with full_precision(s):
            s, t = (fill_void(resize(as_float(x), s.shape[-2:]), cells != IGNORE_INDEX) for x in (s, t))
            return {term: self.comparisons[term](s, t, cells, self.temperature) for term in self.weights}

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's logits, or images that have any."""
        valid = (shrink_labels(labels, tap_grid(labels, self.stride)) != IGNORE_INDEX).flatten(1)
        cells, images = valid.sum().float(), valid.any(1).sum().float()
        return {term: images if term in self.per_image else cells for term in self.weights}


class KD(LogitMethod):
    """``pixel_divergence``: T^2 KL(softmax(z_t / T) || softmax(z_s / T)) of each pixel.

        L = L_task + weight * L_kd

    Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2, with pixels in
    the place of images. Without void it is the pixel-wise term of github.com/winycg/CIRKD (``losses/kd.py`` there;
    ratio 1, measured), which compares void cells too and has weight 1 at T = 1.

    Args:
        student, teacher: what the two networks declare.
        weight: of the term ``'kd'``, positive.
        temperature: T.

    Raises:
        ValueError: if the class counts differ, or a value makes no sense.
    """

    comparisons = {"kd": pixel_divergence}

    def __init__(self, student: ModelSpec, teacher: ModelSpec, weight: float = 1.0, temperature: float = 1.0):
        super().__init__(student, teacher, {"kd": weight}, temperature)
