"""IFVD: the student learns how similar each pixel's features are to the mean of its class."""

import torch.nn.functional as F
from torch import Tensor

from losses.base import INSIDE, METHODS, FeatureMethod, class_ids, on_student_grid
from losses.checks import Pairs, check_logits, check_weights
from losses.functional import full_precision, masked_mean, unit
from losses.labels import Labels, Pixels
from models.base import ModelSpec, SegOutput
from utils.names import VOID


def class_similarity(x: Tensor, cells: Tensor, num_classes: int) -> Tensor:
    """Cosine of each cell's feature vector with the mean of its class in its image.

    Args:
        x: B C h w, 0 where ``cells`` is ``VOID``.
        cells: B h w class ids, ``VOID`` where nothing is compared.
        num_classes: K.

    Returns:
        B h w; 0 at void cells, which are in no mean.
    """
    rows = x.flatten(2).transpose(1, 2)  # B N C
    # Void cells are counted to class 0, to whose sum they add 0. A sum has the direction of the mean.
    members = F.one_hot(cells.long().masked_fill(cells == VOID, 0).flatten(1), num_classes).to(x.dtype)  # B N K
    centres = unit(members.transpose(1, 2) @ rows)  # B K C
    # No B N C tensor of each cell's centre: each cell takes one of its products with all K centres.
    products, lengths = (rows @ centres.transpose(1, 2) * members).sum(-1), rows.norm(dim=-1)
    return (products / lengths.where(lengths > 0, 1)).view(cells.shape)


@METHODS.register("ifvd")
class IFVD(FeatureMethod):
    """Intra-class feature variation: mean squared distance between the two sides' maps of ``class_similarity``.

        L = L_task + weight * mean_p (cos(S_p, mean S of p's class) - cos(T_p, mean T of p's class))^2

    Each side is compared with its own means, so the widths need no alignment and a factor on a map does not matter. The
    teacher's map is resized to the student's grid. A class mean is taken over one image. Nothing is learnt. With
    ``pixels='inside'``, the teacher's most probable class replaces a missing label.

    Wang, Zhou, Jiang, Bai, Xu: "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020,
    the L_ifv of its total. On one grid, value and gradient of github.com/YukangWang/IFVD and of
    github.com/winycg/CIRKD are ours times the share of cells that are not void (measured), because there void cells
    count as zeros. There a cell takes the label at its corner, here at its centre. The paper adds SKD's pixel-wise and
    holistic terms: compose with ``kd`` for the pixel-wise one.

    Args:
        weight: of the term ``'ifvd'``; positive.

    Raises:
        ValueError: if the weight is not positive, a tap is unknown, a pair is repeated or missing, or with
            ``pixels='inside'`` the teacher gives no logits or other classes.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 200.0,
        pairs: Pairs = (("head", "head"),),
        pixels: Pixels = "labelled",
    ):
        check_weights(weight=weight)
        super().__init__(student, teacher, "ifvd", weight, pairs, pixels)
        if pixels == "inside":
            check_logits(self, student, teacher, "set pixels='labelled'", INSIDE)
        self.num_classes = student.num_classes

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        terms = {}
        for name, (t, s) in self.pairs.items():
            with full_precision(student.taps[s]):
                *maps, valid = on_student_grid(student.taps[s], teacher.taps[t], labels, self.taps[name], self.pixels)
                cells = class_ids(labels.at(self.taps[name][0].stride), teacher.logits, self.pixels)
                S, T = (class_similarity(x, cells, self.num_classes) for x in maps)
                terms[name] = masked_mean((S - T).square(), valid)
        return terms
