"""Af-DCD: masked feature mimicking, and a contrastive loss between the parts of each patch of the features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.alignment import LogitAlignment, MaskedGeneration
from losses.base import METHODS, Method, on_student_grid
from losses.checks import check_logits, check_pairs, check_weights
from losses.functional import channel_mean, fill_void, full_precision, masked_mean
from losses.labels import Labels, Pixels, pool_valid
from models.base import ModelSpec, SegOutput


def pool_maxima(x: Tensor, valid: Tensor, p: int) -> Tensor:
    """B C h w, B h w bool -> B C ceil(h / p) ceil(w / p): maxima over valid cells, 0 where there are none."""
    pooled = F.max_pool2d(fill_void(x, valid, -torch.inf), p, ceil_mode=True)
    return fill_void(pooled, pool_valid(valid, p))


def patches(x: Tensor, side: int) -> Tensor:
    """B C h w -> n P^2 C: cells of all P x P patches, of a grid padded with zeros."""
    h, w = x.shape[-2:]
    cells = F.unfold(F.pad(x, (0, -w % side, 0, -h % side)), side, stride=side)  # B (C P^2) n
    return cells.unflatten(1, (x.shape[1], side**2)).permute(0, 3, 2, 1).flatten(0, 1)


def omni_contrast(student: Tensor, teacher: Tensor, valid: Tensor, side: int, groups: int, tau: float) -> Tensor:
    """Contrast over positions and channels at once: mean over valid cells of the sum over groups of

        -log (exp(-|s - t| / tau) / (exp(-|s - t| / tau) + sum_k exp(-|s - t_k| / tau)))

    where s and t are one of the ``groups`` equal slices of a cell's channels (the student's and the teacher's), t_k are
    the teacher's slices of every other group at every valid cell of the same patch, and |.| is the L1 norm. By the
    triangle inequality the loss is least where the student equals the teacher, and is not 0 there. Each patch has
    (P^2 groups)^2 distances.

    Args:
        student, teacher: B C h w on one grid; ``groups`` divides C.
        valid: B h w bool.
        side: P of the P x P patches.
        groups: M.
        tau: temperature > 0.
    """
    s, t = (patches(x, side).unflatten(2, (groups, -1)).flatten(1, 2) for x in (student, teacher))  # n (P^2 M) C/M
    inside = patches(valid[:, None].to(s.dtype), side)[..., 0] > 0  # n P^2
    group = torch.arange(s.shape[1], device=s.device) % groups
    positive = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    compared = positive | (group[:, None] != group) & inside.repeat_interleave(groups, 1)[:, None]
    scores = (-torch.cdist(s, t, p=1) / tau).masked_fill(~compared, -torch.inf)
    losses = -scores.log_softmax(2).diagonal(dim1=1, dim2=2)
    return masked_mean(losses.unflatten(1, (-1, groups)).sum(2), inside)


@METHODS.register("afdcd")
class AfDCD(Method):
    """Augmentation-free dense contrastive distillation, with omni-contrasting.

        L = L_task + kd * L_kd + feature * L_feature + contrast * L_contrast

    - L_kd: pixel-wise distillation of the logits, T^2 KL;
    - L_feature: the loss of MGD, mean (G(M * align(S)) - T)^2;
    - L_contrast: ``omni_contrast`` of G(M * align(S)) and T, both first max-pooled ``pool`` x ``pool``.

    Fan et al., "Augmentation-Free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation",
    NeurIPS 2023. Against github.com/OSVAI/Af-DCD, without void, on one grid and with the same masks (measured):

    - L_kd and L_contrast are the same; L_feature there is a sum over cells and channels, C_t h w times ours. Its
      weights on Cityscapes (2e-6, crops of 512 x 1024) and on CamVid (8e-6, 360 x 360), for C_t = 2048 at stride 8,
      are 33.6 and 33.2 in our unit: 2e-6 * 2048 * 64 * 128 and 8e-6 * 2048 * 45 * 45.
    - Grids that P or ``pool`` does not divide are padded with cells that do not count; there, the surplus rows and
      columns are left out.
    - On CamVid it has ``pool=1`` and ``contrast=.01``. Its option of a fixed mask with a deeper G is not implemented.
    - It clips the gradient norm of G and align only, at 15; ``train.grad_clip`` is for all parameters.

    The masks depend on how a batch is split, as in MGD.

    Args:
        kd, feature, contrast: weights of the terms ``'afdcd_kd'``, ``'afdcd_feature'``, ``'afdcd_contrast'``, 0 or
            more.
        pair: (teacher's tap, student's tap).
        temperature: T of L_kd.
        mask_ratio: share of the cells that are masked, in [0, 1).
        tau: temperature of the contrast.
        groups: slices of the teacher's channels, 2 or more.
        patch: P, in pooled cells.
        pool: side of the pooling, in cells of the student's tap; 1 for none.

    Raises:
        ValueError: if a tap is unknown, a value makes no sense, ``groups`` does not divide the teacher's channels, or
            ``kd`` is on and the teacher gives no logits or other classes.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        kd: float = 1.0,
        feature: float = 33.5,
        contrast: float = 0.005,
        pair: tuple[str, str] = ("stage4", "stage4"),
        temperature: float = 1.0,
        mask_ratio: float = 0.75,
        tau: float = 0.07,
        groups: int = 16,
        patch: int = 4,
        pool: int = 4,
        pixels: Pixels = "labelled",
    ):
        super().__init__(pixels)
        weights = {"kd": kd, "feature": feature, "contrast": contrast}
        check_weights(**weights)
        check_pairs("pair", [pair], student, teacher)
        self.taps = student.taps[pair[1]], teacher.taps[pair[0]]
        width = self.taps[1].channels
        if temperature <= 0 or tau <= 0:
            raise ValueError(f"temperature is {temperature}, tau {tau}; expected both > 0")
        if patch < 1 or pool < 1:
            raise ValueError(f"patch is {patch}, pool {pool}; expected both 1 or more")
        if groups < 2 or (contrast and width % groups):
            raise ValueError(f"groups is {groups}; expected 2 or more that divide the teacher's {width} channels")
        if kd:
            check_logits(self, student, teacher, "set kd=0")
        self.weights = {f"afdcd_{name}": float(weight) for name, weight in weights.items() if weight}
        self.pair, self.tau, self.groups, self.patch, self.pool = pair, tau, groups, patch, pool
        self.pairs = {"afdcd": pair}
        self.align = LogitAlignment(student.num_classes, student.taps["head"].stride, temperature)
        self.generation = MaskedGeneration(*self.taps, mask_ratio) if feature or contrast else None

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        terms = {}
        if "afdcd_kd" in self.weights:
            terms["afdcd_kd"] = self.align(student.logits, teacher.logits, labels, self.pixels)
        if self.generation is None:
            return terms
        s, t = student.taps[self.pair[1]], teacher.taps[self.pair[0]]
        with full_precision(s):
            S, T, valid = on_student_grid(s, t, labels, self.taps, self.pixels)
            S = self.generation(S, valid)
            if "afdcd_feature" in self.weights:
                terms["afdcd_feature"] = masked_mean(channel_mean((S - T).square()), valid)
            if "afdcd_contrast" in self.weights:
                pooled = [pool_maxima(x, valid, self.pool) for x in (S, T)]
                shape = self.patch, self.groups, self.tau
                terms["afdcd_contrast"] = omni_contrast(*pooled, pool_valid(valid, self.pool), *shape)
        return terms

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells: of the logits' grid, of the student's tap, and of that tap after pooling."""
        cells = labels.at(self.taps[0].stride)
        counts = {
            "afdcd_kd": self.align.count(labels, self.pixels),
            "afdcd_feature": cells.count(self.pixels),
            "afdcd_contrast": pool_valid(cells.mask(self.pixels), self.pool).sum().float(),
        }
        return {term: counts[term] for term in self.weights}
