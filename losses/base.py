"""The contract of a distillation method: named scalar terms, their weights, and what each is a mean over."""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from losses.checks import Pairs, check_logits, check_maps, check_pairs, check_weights
from losses.functional import as_float, fill_void, full_precision, kl_divergence, resize
from losses.labels import Grid, Labels, Pixels
from models.base import ModelSpec, SegOutput, Tap
from utils.names import VOID, Registry, unknown_name

METHODS: Registry[Callable[..., "Method"]] = Registry("distillation method")

NO_LOGITS = "choose a method that compares features, such as fitnet"  # advice if the teacher's logits do not fit
INSIDE = "with pixels='inside' reads the teacher's logits"  # where a pixel has no label


class Method(nn.Module):
    """One distillation method. It owns its projectors; it owns neither network.

    A method is made of what the two networks declare (``student`` and ``teacher``, each a ``ModelSpec``), and of
    arguments of its own. Terms that learn from the labels are always means over labelled pixels.

    Args:
        pixels: compare pixels with a label (``'labelled'``) or all inside the image (``'inside'``).

    Raises:
        ValueError: if ``pixels`` is neither.
    """

    # Of each term in the total. Its keys are exactly those of what ``forward`` returns: one of weight 0 is never built.
    weights: dict[str, float]
    needs_calibration = False  # whether ``calibrate`` must be called before the first step of a new run
    pairs: Mapping[str, tuple[str, str]] = {}  # (teacher's tap, student's tap) of each term that compares features

    def __init__(self, pixels: Pixels = "labelled"):
        super().__init__()
        if pixels not in get_args(Pixels):
            raise unknown_name("pixels", pixels, get_args(Pixels))
        self.pixels = pixels

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        """Unweighted terms for one local batch.

        Args:
            student: the student's output; gradients flow into it.
            teacher: the teacher's output; no gradient ever flows into it.

        Returns:
            float32 scalars, each a mean over as many elements as ``counts`` returns. A mean over nothing is exactly 0.
        """
        raise NotImplementedError

    def calibrate(self, outputs: Callable[[], Iterable[tuple[SegOutput, Labels]]]) -> None:
        """Measures the teacher before the first step, and keeps what it finds in buffers.

        ``outputs`` runs the teacher on some training batches and returns what it gives, with the images' labels.
        """

    def targets(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, dict[str, Tensor]]:
        """What the student is compared with, for a diagnosis; arguments as of ``forward``.

        Here: the teacher's tap of each of ``pairs``, or its class probabilities if there are none, on the student's
        grid.

        Returns:
            For each term, the map (B C h w) after each step on the teacher's side. The last one is the target.
        """
        if not self.pairs and teacher.logits is not None:
            return {"logit": {"probabilities": resize(as_float(teacher.logits), student.logits.shape[-2:]).softmax(1)}}
        return {
            name: {t: resize(as_float(teacher.taps[t]), student.taps[s].shape[-2:])}
            for name, (t, s) in self.pairs.items()
        }

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Number of elements (float32 scalars) that each term is a mean over for these labels.

        The training loop sums them over ranks and accumulated batches and scales each local mean by
        count / global count, so that the same images give the same loss however they are split.
        Here: the batch size, right for every term whose samples all have the same weight.
        """
        batch = torch.full((), float(len(labels)), device=labels.ids.device)
        return dict.fromkeys(self.weights, batch)


def pair_terms(term: str, pairs: Pairs) -> dict[str, tuple[str, str]]:
    """The pair of each term, by the term's name.

    One pair has the term ``term``. Several have a term each, with the teacher's tap first:
    ``'feature/stage3-stage4'``. Each then has its share, weight / number of pairs, of the weight.
    """
    return {f"{term}/{t}-{s}" if len(pairs) > 1 else term: (t, s) for t, s in pairs}


def class_ids(cells: Grid, teacher_logits: Tensor | None, pixels: Pixels) -> Tensor:
    """B h w uint8: the class of each cell that is compared, ``VOID`` at all others.

    It is the label. With ``pixels='inside'``, cells inside the image without a label take the teacher's most probable
    class.

    Args:
        teacher_logits: B K h' w', resized bilinearly to the grid; read with ``'inside'`` only.
    """
    if pixels == "labelled":
        return cells.ids.masked_fill(~cells.labelled, VOID)
    guess = resize(as_float(teacher_logits.detach()), cells.ids.shape[-2:]).argmax(1).to(cells.ids)
    return torch.where(cells.labelled, cells.ids, guess).masked_fill(~cells.inside, VOID)


def on_student_grid(
    student: Tensor, teacher: Tensor, labels: Labels, taps: tuple[Tap, Tap], pixels: Pixels
) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps, ready to be compared: on the student's grid, in float32 or float64, 0 where nothing is compared.

    Args:
        student: B C_s h w.
        teacher: B C_t h' w', on any grid; detached, and resized bilinearly.
        taps: the student's and the teacher's, as declared.

    Returns:
        B C_s h w, B C_t h w, and the cells that are compared, B h w bool.

    Raises:
        ValueError: if a map is not as ``check_maps`` expects.
    """
    check_maps(student, teacher, taps, labels)
    valid = labels.at(taps[0].stride).mask(pixels)
    S, T = as_float(student), resize(as_float(teacher.detach()), student.shape[-2:])
    return fill_void(S, valid), fill_void(T, valid), valid


class FeatureMethod(Method):
    """A method with one term for each pair of taps, named by ``pair_terms``.

    Args:
        weight: of all pairs together; no term is built where it is 0.
        pairs: (teacher's tap, student's tap) of each term.

    Raises:
        ValueError: if a weight or another value makes no sense, a tap is unknown, or a pair is repeated or missing.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        term: str,
        weight: float,
        pairs: Pairs,
        pixels: Pixels = "labelled",
    ):
        super().__init__(pixels)
        self.pairs = {}
        if weight:
            check_pairs("pairs", pairs, student, teacher)
            self.pairs = pair_terms(term, pairs)
        self.taps = {name: (student.taps[s], teacher.taps[t]) for name, (t, s) in self.pairs.items()}  # student's first
        self.weights = {name: weight / len(pairs) for name in self.pairs}

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        terms = {}
        for name, (t, s) in self.pairs.items():
            with full_precision(student.taps[s]):
                maps = on_student_grid(student.taps[s], teacher.taps[t], labels, self.taps[name], self.pixels)
                terms[name] = self.compare(name, *maps)
        return terms

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        """The term ``name`` of one pair: what ``on_student_grid`` returns -> scalar."""
        raise NotImplementedError

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells of the student's tap."""
        return {name: labels.at(tap.stride).count(self.pixels) for name, (tap, _) in self.taps.items()}


# (student's logits, teacher's logits, cells, temperature) -> scalar: both B K h w on one grid and 0 at void cells,
# cells B h w class ids, VOID where nothing is compared.
Comparison = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def pixel_divergence(student: Tensor, teacher: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the class distributions, mean over compared cells; arguments as of every ``Comparison``."""
    return kl_divergence(student, teacher, cells != VOID, temperature)


class LogitMethod(Method):
    """A sum of comparisons of the two networks' logits, on the student's grid. Nothing is learnt.

    The teacher's logits are resized to that grid, bilinearly. Cells that are not compared, by the label at their
    centre, are set to 0 on both sides first, so that what the networks predict there changes neither value nor
    gradient.

    Args:
        weights: of each of ``comparisons``, 0 or more.
        temperature: T.

    Raises:
        ValueError: if the teacher gives no logits or other classes, or a value makes no sense.
    """

    comparisons: ClassVar[dict[str, Comparison]]
    per_image: ClassVar[Set[str]] = frozenset()  # terms that are means over images; the others are over cells

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weights: dict[str, float],
        temperature: float,
        pixels: Pixels = "labelled",
    ):
        super().__init__(pixels)
        check_logits(self, student, teacher, NO_LOGITS)
        check_weights(**weights)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected temperature > 0")
        self.logits = Tap(student.num_classes, student.taps["head"].stride)
        self.weights = {term: float(weight) for term, weight in weights.items() if weight}
        self.temperature = temperature

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        s, t = student.logits, teacher.logits.detach()
        check_maps(s, t, (self.logits, self.logits), labels, "logits")
        cells = class_ids(labels.at(self.logits.stride), t, self.pixels)
        with full_precision(s):
            s, t = (fill_void(resize(as_float(x), s.shape[-2:]), cells != VOID) for x in (s, t))
            return {term: self.comparisons[term](s, t, cells, self.temperature) for term in self.weights}

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells of the student's logits, or images that have any."""
        cells = labels.at(self.logits.stride)
        return {
            term: cells.count_images(self.pixels) if term in self.per_image else cells.count(self.pixels)
            for term in self.weights
        }
