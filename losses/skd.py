"""SKD: structured distillation, of each pixel's class distribution and of the similarity of each pair of regions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.alignment import LogitAlignment
from losses.base import METHODS, FeatureMethod
from losses.checks import Pairs, check_logits, check_maps, check_weights
from losses.functional import as_float, fill_void, full_precision, masked_mean, resize, unit
from losses.labels import Labels, Pixels
from models.base import ModelSpec, SegOutput, Tap


def pool_nodes(x: Tensor, valid: Tensor, nodes: int) -> Tensor:
    """Maximum of each channel over the valid cells of each of nodes x nodes regions.

    Args:
        x: B C h w.
        valid: B h w bool.
        nodes: n.

    Returns:
        B n^2 C; 0 where a region has no valid cell (see ``valid_nodes``).
    """
    x = fill_void(x, valid, -torch.inf)
    # By a gather: a GPU can sum its gradient in a fixed order, but not the gradient of the pooling itself.
    _, places = F.adaptive_max_pool2d(x.detach(), nodes, return_indices=True)
    pooled = x.flatten(2).gather(2, places.flatten(2)).transpose(1, 2)
    return pooled.masked_fill(~valid_nodes(valid, nodes)[..., None], 0)


def valid_nodes(valid: Tensor, nodes: int) -> Tensor:
    """B h w bool -> B n^2 bool: regions with a valid cell."""
    return F.adaptive_max_pool2d(valid[:, None].float(), nodes).flatten(1) > 0


def pairwise_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Mean squared distance between the two sides' cosines, over all ordered pairs of an image's valid nodes.

    Args:
        student, teacher: B N C_s and B N C_t.
        valid: B N bool.
    """
    S, T = (unit(x) @ unit(x).transpose(1, 2) for x in (student, teacher))
    return masked_mean((S - T).square(), valid[:, :, None] & valid[:, None, :])


@METHODS.register("skd")
class SKD(FeatureMethod):
    """Pixel-wise distillation of the logits and pair-wise distillation of features.

        L = L_task + pixel * L_pixel + pairwise * L_pairwise

    - L_pixel: T^2 KL of the class distributions, mean over compared cells of the student's logits;
    - L_pairwise: ``pairwise_distance`` of a map max-pooled to n x n regions. Each side is pooled on its own grid, so
      neither grids nor widths need to be aligned. A region without a compared cell on either grid is left out. Nothing
      is learnt.

    Liu, Chen, Liu, Qin, Luo, Wang: "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019: its
    pixel-wise and pair-wise terms. The holistic, adversarial term is left out: it needs a critic with its own
    optimizer. Against github.com/irfanICMLL/structure_knowledge_distillation, without void (ratios measured to 1e-5):

    - L_pixel there is a cross-entropy, summed over the images: B times (ours + the teacher's mean entropy), so its
      gradient is B times ours at T = 1. Its void cells count.
    - L_pairwise there has the same value on one grid with even sides. On odd sides it does not: its max-pooling by half
      a side leaves a third row and column of regions, one cell wide, which are hardly maxima. On random 65 x 65
      features ours was less than 0.01 of its value; the ratio depends on the size and on the features. Its gradient
      treats the length of each vector as a constant. On random features, at the one size measured, it was 4.5 times as
      long as ours, mostly along the vectors, where a cosine has no gradient; the factor is another at other sizes.
    - Weights there: 10 and 1 by default, 10 and .5 in its script. github.com/winycg/CIRKD pools 2 x 2 cells instead of
      n x n regions, at 10, beside a pixel-wise term of 1. On even sides its value is that of ours with as many nodes;
      on odd sides the regions differ as above: on random 65 x 65 features ours with 33 nodes was 0.19 of its value.

    Args:
        pixel, pairwise: weights of the terms ``'skd_pixel'`` and ``'skd_pairwise'``, 0 or more.
        pairs: (teacher's tap, student's tap) of each pair-wise term; see ``FeatureMethod``.
        nodes: n, 2 or more.
        temperature: T of L_pixel.

    Raises:
        ValueError: if ``pixel`` is on and the teacher gives no logits or other classes, a tap is unknown, a pair is
            repeated or missing, or a value makes no sense.
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
        pixels: Pixels = "labelled",
    ):
        check_weights(pixel=pixel, pairwise=pairwise)
        super().__init__(student, teacher, "skd_pairwise", pairwise, pairs, pixels)
        if temperature <= 0 or nodes < 2:
            raise ValueError(f"temperature is {temperature}, nodes {nodes}; expected temperature > 0 and nodes >= 2")
        self.nodes = nodes
        self.align = LogitAlignment(student.num_classes, student.taps["head"].stride, temperature)
        if pixel:
            check_logits(self, student, teacher, "set pixel=0")
            self.weights = {"skd_pixel": float(pixel), **self.weights}

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        terms = {}
        if "skd_pixel" in self.weights:
            terms["skd_pixel"] = self.align(student.logits, teacher.logits, labels, self.pixels)
        for name, (teacher_tap, student_tap) in self.pairs.items():
            taps, maps = self.taps[name], (student.taps[student_tap], teacher.taps[teacher_tap].detach())
            check_maps(*maps, taps, labels)
            with full_precision(maps[0]):
                S, T = (
                    pool_nodes(resize(as_float(x), labels.size(tap.stride)), self._cells(tap, labels), self.nodes)
                    for x, tap in zip(maps, taps, strict=True)
                )
                terms[name] = pairwise_distance(S, T, self._valid(name, labels))
        return terms

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells of the student's logits; ordered pairs of valid regions, summed over the images."""
        counts = {"skd_pixel": self.align.count(labels, self.pixels)} if "skd_pixel" in self.weights else {}
        return counts | {name: self._valid(name, labels).sum(1).float().square().sum() for name in self.pairs}

    def _cells(self, tap: Tap, labels: Labels) -> Tensor:
        """B h w bool: compared cells on a tap's grid."""
        return labels.at(tap.stride).mask(self.pixels)

    def _valid(self, name: str, labels: Labels) -> Tensor:
        """B n^2 bool: regions with a compared cell on both sides' grids."""
        S, T = (valid_nodes(self._cells(tap, labels), self.nodes) for tap in self.taps[name])
        return S & T
