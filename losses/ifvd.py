"""IFVD: how like its own class's mean each pixel is, for the student to copy."""

import torch.nn.functional as F
from torch import Tensor

from losses.base import METHODS, Method
from losses.checks import Pairs, check_pairs, check_shape, check_weights
from losses.functional import as_float, fill_void, full_precision, masked_mean, resize, unit
from losses.labels import count_valid, shrink_labels, tap_grid
from models.base import ModelSpec, SegOutput
from utils.names import VOID


def class_similarity(x: Tensor, cells: Tensor, num_classes: int) -> Tensor:
    """Cosine of each cell's feature vector with the mean of its class in its image.

    Args:
        x: B C h w.
        cells: B h w class ids, 255 where void.
        num_classes: K.

    Returns:
        B h w; 0 at void cells, which are in no mean.
    """
    valid = cells != VOID
    rows = fill_void(x, valid).flatten(2).transpose(1, 2)  # B N C
    # Void passes for class 0, to whose sum it adds 0. A sum has the direction of the mean.
    members = F.one_hot(cells.long().masked_fill(~valid, 0).flatten(1), num_classes).to(x.dtype)  # B N K
    centres = unit(members.transpose(1, 2) @ rows)  # B K C
    # A cell's centre is not written out: of its K products with all centres one is taken.
    products, lengths = (rows @ centres.transpose(1, 2) * members).sum(-1), rows.norm(dim=-1)
    return (products / lengths.where(lengths > 0, 1)).view(cells.shape)


@METHODS.register("ifvd")
class IFVD(Method):
    """Intra-class feature variation: mean squared distance of the two sides' maps of ``class_similarity``.

        L = L_task + weight * mean_p (cos(S_p, mean S of p's class) - cos(T_p, mean T of p's class))^2

    Each side is compared with itself, so widths need no alignment and a factor on a map does not matter. The teacher's
    map is resized to the student's grid. Class means are of one image. Nothing is learnt.

    Wang, Zhou, Jiang, Bai, Xu: "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020,
    the L_ifv of its total. On one grid, value and gradient of github.com/YukangWang/IFVD and of
    github.com/winycg/CIRKD are ours times the share of cells that are not void (measured): there void cells count, as
    zeros. There a label shrinks to the pixel at its cell's corner, here to that at its centre. The paper has this term
    beside SKD's pixel-wise and holistic ones: compose it with ``kd`` for the former.

    Args:
        student, teacher: what the two networks declare.
        weight: of the term ``'ifvd'``; positive. With several pairs each is a term of its own, with its share of it.
        pairs: (teacher's tap, student's tap) of each comparison.

    Raises:
        ValueError: if the weight is not positive, a tap is unknown, or a pair is repeated or missing.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 200.0,
        pairs: Pairs = (("head", "head"),),
    ):
        super().__init__()
        check_weights(weight=weight)
        check_pairs("pairs", pairs, student, teacher)
        self.student, self.teacher = student, teacher
        self.pairs = {f"ifvd/{t}-{s}" if len(pairs) > 1 else "ifvd": (t, s) for t, s in pairs}
        self.weights = dict.fromkeys(self.pairs, weight / len(pairs))

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms (see ``Method.forward``)."""
        terms = {}
        for name, (teacher_tap, student_tap) in self.pairs.items():
            s, t = student.taps[student_tap], teacher.taps[teacher_tap].detach()
            check_shape("the student's map", s, *self.student.taps[student_tap], labels)
            check_shape("the teacher's map", t, *self.teacher.taps[teacher_tap], labels)
            cells = shrink_labels(labels, s.shape[-2:])
            with full_precision(s):
                maps = as_float(s), resize(as_float(t), s.shape[-2:])
                S, T = (class_similarity(x, cells, self.student.num_classes) for x in maps)
                terms[name] = masked_mean((S - T).square(), cells != VOID)
        return terms

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's tap."""
        strides = {name: self.student.taps[s].stride for name, (_, s) in self.pairs.items()}
        return {name: count_valid(shrink_labels(labels, tap_grid(labels, stride))) for name, stride in strides.items()}
