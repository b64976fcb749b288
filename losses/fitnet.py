"""FitNet: the student's features regress the teacher's; and what the methods that compare feature maps share."""

from torch import Tensor, nn

from losses.base import Method
from losses.checks import Pairs, check_pairs, check_shape, check_weights
from losses.functional import (
    as_float,
    channel_mean,
    fill_void,
    full_precision,
    masked_mean,
    resize,
    tap_grid,
    valid_cells,
)
from models.base import ModelSpec, SegOutput, Tap


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


class FitNet(FeatureMethod):
    """Mean squared distance of a learnt linear map of the student's features from the teacher's.

        L = L_task + weight * mean (W S - T)^2

    over valid cells and the teacher's channels; W is a 1x1 convolution.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3, which halves the sum over cells and channels:
    C_t h w / 2 times ours for an image. There W may have a larger kernel and a non-linearity, and the hint trains a
    stage before the task. Here, as in github.com/winycg/CIRKD, both train together; without void and on one grid our
    value is that of its code (ratio 1, measured), as is the weight; its recipe adds ``kd`` at 1.

    Args:
        student, teacher: what the two networks declare.
        weight: of the term ``'fitnet'``; positive.
        pairs: (teacher's tap, student's tap) of each comparison; see ``FeatureMethod``.

    Raises:
        ValueError: if the weight is not positive, a tap is unknown, or a pair is repeated or missing.
    """

    def __init__(
        self, student: ModelSpec, teacher: ModelSpec, weight: float = 10.0, pairs: Pairs = (("head", "head"),)
    ):
        check_weights(weight=weight)
        super().__init__(student, teacher, "fitnet", weight, pairs)
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(s.channels, t.channels, 1, bias=False) for name, (s, t) in self.taps.items()}
        )

    def compare(self, name: str, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return masked_mean(channel_mean((self.project[name](student) - teacher).square()), valid)
