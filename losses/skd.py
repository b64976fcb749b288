"""SKD: structured distillation, of each pixel's classes and of the likeness of each pair of regions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.alignment import LogitAlignment
from losses.base import METHODS, Method
from losses.checks import Pairs, check_classes, check_pairs, check_shape, check_weights
from losses.functional import as_float, fill_void, full_precision, masked_mean, unit
from losses.labels import tap_grid, valid_cells
from models.base import ModelSpec, SegOutput, Tap


def pool_nodes(x: Tensor, valid: Tensor, nodes: int) -> Tensor:
    """Maximum of each channel over the valid cells of each of nodes x nodes regions.

    Args:
        x: B C h w.
        valid: B h w bool.
        nodes: n.

    Returns:
        B n^2 C; 0 where a region has no valid cell (``valid_nodes`` tells).
    """
    x = fill_void(x, valid, -torch.inf)
    # By a gather, whose gradient can be added up in a fixed order on a GPU; the pooling's own cannot.
    _, places = F.adaptive_max_pool2d(x.detach(), nodes, return_indices=True)
    pooled = x.flatten(2).gather(2, places.flatten(2)).transpose(1, 2)
    return pooled.masked_fill(~valid_nodes(valid, nodes)[..., None], 0)


def valid_nodes(valid: Tensor, nodes: int) -> Tensor:
    """B h w bool -> B n^2 bool: regions with a valid cell."""
    return F.adaptive_max_pool2d(valid[:, None].float(), nodes).flatten(1) > 0


def pairwise_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Mean squared distance of the two sides' cosines, over all ordered pairs of an image's valid nodes.

    Args:
        student, teacher: B N C_s and B N C_t.
        valid: B N bool.
    """
    S, T = (unit(x) @ unit(x).transpose(1, 2) for x in (student, teacher))
    return masked_mean((S - T).square(), valid[:, :, None] & valid[:, None, :])


@METHODS.register("skd")
class SKD(Method):
    """Pixel-wise distillation of the logits and pair-wise distillation of features.

        L = L_task + pixel * L_pixel + pairwise * L_pairwise

    - L_pixel: T^2 KL of the class distributions, mean over valid cells of the student's logits;
    - L_pairwise: ``pairwise_distance`` of a map max-pooled to n x n regions, each side's from its own grid, so neither
      grids nor widths need to be aligned. A region is left out if it is void on either grid. Nothing is learnt.

    Liu, Chen, Liu, Qin, Luo, Wang: "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019: its
    pixel-wise and pair-wise terms. The holistic, adversarial term is left out: it needs a critic with an optimizer of
    its own. Against github.com/irfanICMLL/structure_knowledge_distillation, without void (ratios measured to 1e-5):

    - L_pixel there is a cross-entropy, summed over the images: B times (ours + the teacher's mean entropy), so its
      gradient is B times ours at T = 1. Its void cells count.
    - L_pairwise there has the same value, on one grid of even sides (max-pooling by half a side leaves a third row or
      column on odd ones), but its gradient takes each vector's length for a constant: on random features it was 4.5
      times as long as ours, and mostly along the vectors, where a cosine has none.
    - Weights there: 10 and 1 by default, 10 and .5 in its script. github.com/winycg/CIRKD pools 2 x 2 cells instead
      (the value of ours with as many nodes), at 10, beside a pixel-wise term of 1.

    Args:
        student, teacher: what the two networks declare.
        pixel, pairwise: weights of the terms ``'skd_pixel'`` and ``'skd_pairwise'``, 0 or more.
        pairs: (teacher's tap, student's tap) of each pair-wise term. With several, each is a term of its own
            (``'skd_pairwise/stage4-stage4'``) with its share of the weight.
        nodes: n, 2 or more.
        temperature: T of L_pixel.

    Raises:
        ValueError: if logits of different classes would be compared, a tap is unknown, a pair is repeated or missing,
            or a value makes no sense.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        pixel: float = 10.0,
        pairwise: float = 1.0,
        pairs: Pairs = (("head", "head"),),
        nodes: int = 2,
        temperature: float = 1.0,
    ):
        super().__init__()
        check_weights(pixel=pixel, pairwise=pairwise)
        if pixel:
            check_classes(student, teacher)
        check_pairs("pairs", pairs, student, teacher)
        if temperature <= 0 or nodes < 2:
            raise ValueError(f"temperature is {temperature}, nodes {nodes}; expected temperature > 0 and nodes >= 2")
        self.nodes, self.taps = nodes, (student.taps, teacher.taps)
        self.align = LogitAlignment(student.num_classes, student.taps["head"].stride, temperature)
        self.weights = {"skd_pixel": float(pixel)} if pixel else {}
        self.pairs: dict[str, tuple[str, str]] = {}
        if pairwise:
            many = len(pairs) > 1
            self.pairs = {f"skd_pairwise/{t}-{s}" if many else "skd_pairwise": (t, s) for t, s in pairs}
            self.weights |= dict.fromkeys(self.pairs, pairwise / len(pairs))

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms (see ``Method.forward``)."""
        terms = {}
        if "skd_pixel" in self.weights:
            terms["skd_pixel"] = self.align(student.logits, teacher.logits, labels)
        for name, (teacher_tap, student_tap) in self.pairs.items():
            s, t = student.taps[student_tap], teacher.taps[teacher_tap].detach()
            check_shape("the student's map", s, *self.taps[0][student_tap], labels)
            check_shape("the teacher's map", t, *self.taps[1][teacher_tap], labels)
            with full_precision(s):
                S, T = (pool_nodes(as_float(x), valid_cells(labels, x.shape[-2:]), self.nodes) for x in (s, t))
                terms[name] = pairwise_distance(S, T, self._valid(name, labels))
        return terms

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's logits; ordered pairs of valid regions, summed over the images."""
        counts = {"skd_pixel": self.align.count(labels)} if "skd_pixel" in self.weights else {}
        return counts | {name: self._valid(name, labels).sum(1).float().square().sum() for name in self.pairs}

    def _valid(self, name: str, labels: Tensor) -> Tensor:
        """B n^2 bool: regions with a valid cell on both sides' grids."""
        teacher_tap, student_tap = self.pairs[name]
        taps: tuple[Tap, Tap] = self.taps[0][student_tap], self.taps[1][teacher_tap]
        S, T = (valid_nodes(valid_cells(labels, tap_grid(labels, tap.stride)), self.nodes) for tap in taps)
        return S & T
