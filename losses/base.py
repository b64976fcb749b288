"""The contract of a distillation method: named scalar terms, their weights, and what each is a mean over."""

from collections.abc import Callable, Set
from typing import ClassVar

import torch
from torch import Tensor, nn

from losses.checks import Pairs, check_classes, check_pairs, check_shape, check_weights
from losses.functional import as_float, fill_void, full_precision, kl_divergence, resize
from losses.labels import shrink_labels, tap_grid, valid_cells
from models.base import ModelSpec, SegOutput, Tap
from utils.names import VOID, Registry

METHODS: Registry[Callable[..., "Method"]] = Registry("distillation method")


class Method(nn.Module):
    """One distillation method. It owns its projectors; it owns neither network.

    Attributes:
        weights: weight of each term in the total. Its keys are exactly the keys of what ``forward`` returns:
            a term of weight 0 is never built.
    """

    weights: dict[str, float]

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms for one local batch.

        Args:
            student: the student's output; gradients flow into it.
            teacher: the teacher's output; no gradient ever flows into it.
            labels: B H W uint8 or int64 class ids, 255 where void.

        Returns:
            float32 scalars, each a mean over the elements that ``counts`` tells. A mean over nothing is exactly 0.
        """
        raise NotImplementedError

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Number of elements (float32 scalars) that each term is a mean over for these labels.

        The training loop sums them over ranks and accumulated batches and scales each local mean by
        count / global count, so that the same images give the same loss however they are split.
        Here: the batch size, right for every term whose samples all weigh the same.
        """
        batch = torch.tensor(float(len(labels)), device=labels.device)
        return dict.fromkeys(self.weights, batch)


def on_student_grid(
    student: Tensor, teacher: Tensor, labels: Tensor, taps: tuple[Tap, Tap]
) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps, ready to be compared: on the student's grid, in float32 or float64, 0 at void cells.

    Args:
        student: B C_s h w.
        teacher: B C_t h' w'; detached, and resized bilinearly.
        labels: B H W.
        taps: the student's and the teacher's, as declared.

    Returns:
        B C_s h w, B C_t h w, and the valid cells, B h w bool.

    Raises:
        ValueError: if a map is not as its tap declares.
    """
    check_shape("the student's map", student, *taps[0], labels)
    check_shape("the teacher's map", teacher, *taps[1], labels)
    size = student.shape[-2:]
    valid = valid_cells(labels, size)
    S, T = as_float(student), resize(as_float(teacher.detach()), size)
    return fill_void(S, valid), fill_void(T, valid), valid


class FeatureMethod(Method):
    """A method with one term for each pair of taps.

    With one pair, ``term`` is the term's name. With several, each is a term of its own (``'fitnet/stage3-stage4'``,
    teacher's tap first) with its share of the weight.

    Args:
        student, teacher: what the two networks declare.
        term: name.
        weight: of all pairs together; no term is built where it is 0.
        pairs: (teacher's tap, student's tap) of each term.

    Raises:
        ValueError: if a tap is unknown, or a pair is repeated or missing.
    """

    def __init__(self, student: ModelSpec, teacher: ModelSpec, term: str, weight: float, pairs: Pairs):
        super().__init__()
        check_pairs("pairs", pairs, student, teacher)
        self.pairs: dict[str, tuple[str, str]] = {}
        self.taps: dict[str, tuple[Tap, Tap]] = {}  # the student's first
        self.weights: dict[str, float] = {}
        for t, s in pairs if weight else ():
            name = f"{term}/{t}-{s}" if len(pairs) > 1 else term
            self.pairs[name], self.weights[name] = (t, s), weight / len(pairs)
            self.taps[name] = student.taps[s], teacher.taps[t]

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms (see ``Method.forward``)."""
        terms = {}
        for name, (t, s) in self.pairs.items():
            with full_precision(student.taps[s]):
                maps = on_student_grid(student.taps[s], teacher.taps[t], labels, self.taps[name])
                terms[name] = self.compare(name, *maps)
        return terms

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        """The term ``name`` of one pair: what ``on_student_grid`` returns -> scalar."""
        raise NotImplementedError

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's tap."""
        return {
            name: valid_cells(labels, tap_grid(labels, tap.stride)).sum().float()
            for name, (tap, _) in self.taps.items()
        }


# (student's logits, teacher's logits, cells, temperature) -> scalar: both B K h w on one grid and 0 at void cells,
# cells B h w class ids, 255 where void.
Comparison = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def pixel_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the class distributions, mean over valid cells; arguments as of every ``Comparison``."""
    return kl_divergence(student, teacher, cells != VOID, temperature)


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
            s, t = (fill_void(resize(as_float(x), s.shape[-2:]), cells != VOID) for x in (s, t))
            return {term: self.comparisons[term](s, t, cells, self.temperature) for term in self.weights}

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's logits, or images that have any."""
        valid = (shrink_labels(labels, tap_grid(labels, self.stride)) != VOID).flatten(1)
        cells, images = valid.sum().float(), valid.any(1).sum().float()
        return {term: images if term in self.per_image else cells for term in self.weights}
