"""Alignment of one teacher map with one student map, in feature, logit and relation space.

After Xu et al., "Heterogeneous Model Knowledge Distillation via Dual Alignment for Semantic Segmentation", ICMR 2025,
doi 10.1145/3731715.3733354, with one important change. In the released form the teacher-side modules learn from the
distillation loss itself, so the loss can fall while the student learns nothing. Here they are *anchored*: a classifier
on the teacher side learns from the labels, and the student learns to match the detached result. No distillation loss
sends gradient into a teacher-side module, and no anchor sends gradient into the student. The released form remains
available.

Each distillation loss is a mean over the cells of ``pixels`` (see ``losses.base.Method``), each anchor over labelled
cells. Every map is set to 0 at all other cells of the grid before any module reads it, so what a network computes there
changes nothing, if its map is on that grid. A map on another grid is resized first, which mixes each cell into its
neighbours.

Under autocast the feature alignment's convolutions and attention run in half precision, as the networks' own do;
normalisations, softmax, warp, classifiers and every mean are float32. A loss over no cell is exactly 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.checks import check_maps
from losses.functional import (
    as_float,
    channel_mean,
    cross_entropy,
    fill_void,
    full_precision,
    kl_divergence,
    masked_mean,
    resize,
    self_attention_context,
    warp,
)
from losses.labels import Grid, Labels, Pixels, majority_labels
from models.base import ModelSpec, Tap


def class_exit(channels: int, num_classes: int, width: int = 64) -> nn.Sequential:
    """conv1x1-BN-ReLU-conv1x1: B C h w features -> B K h w logits."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, num_classes, 1),
    )


class RefinementBlock(nn.Module):
    """u = conv1x1(x); BN(u + conv3x3(BN(conv3x3(u)))), middle C // 4; the last BN affine or not. B C h w -> B C h w."""

    def __init__(self, channels: int, affine: bool):
        super().__init__()
        width = max(channels // 4, 1)
        self.enter = nn.Conv2d(channels, channels, 1, bias=False)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, channels, 3, padding=1, bias=False),
        )
        self.norm = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        return self.norm(as_float(u + self.bottleneck(u)))


class OffsetField(nn.Module):
    """D = g([phi1(H); phi2(H)]): B C h w -> B 2 h w offsets in cells, zero everywhere before training."""

    def __init__(self, channels: int):
        super().__init__()
        self.phi1, self.phi2 = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
            )
            for _ in range(2)
        )
        last = nn.Conv2d(channels, 2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.g = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(torch.cat([self.phi1(x), self.phi2(x)], dim=1))


class FeatureAlignment(nn.Module):
    """Mean squared distance between a refined student map S and a projected, refined, warped teacher map T'.

        T = refine(project(resize(f_t)));  S = refine(resize(f_s));  T' = warp(T, D(S * T));  loss = mean (T' - S)^2

    over compared cells and channels of the coarser of the two taps' grids: the finer map is resized bilinearly, which
    at a ratio of two is the mean of four cells. (The release compares on the student's grid. Where that is the finer
    one, as with a dilated student, the teacher's map holds no information between its cells, and four times the
    convolutions and sixteen times the attention cost a fifth to a third of a whole step.)

    Anchored, S and T' are both standardised over the batch by a normalisation without scale and shift (T' again after
    the warp, whose interpolation smooths), so neither side can make the loss small by shrinking. If all cells are
    compared, the loss is 2 (1 - correlation), mean over channels, and 2 for unrelated sides. S enters D detached and
    T' enters the loss detached.

    Args:
        context: the side (``'student'``, ``'teacher'`` or None) that gets ``self_attention_context`` before its
            refinement: the CNN, if the other network is a transformer. On the teacher side it is applied to the resized
            and projected map (in the release to the map itself, which at output stride 8 costs many times more).
        anchor_classes: class count of the labels that anchor the teacher side; None for the released form.
    """

    def __init__(self, student: Tap, teacher: Tap, context: str | None, anchor_classes: int | None):
        super().__init__()
        anchored = anchor_classes is not None
        self.student, self.teacher, self.context = student, teacher, context
        self.stride = max(student.stride, teacher.stride)
        self.project = nn.Conv2d(teacher.channels, student.channels, 1, bias=False)  # no bias: 0 stays 0
        self.refine_student = RefinementBlock(student.channels, affine=not anchored)
        self.refine_teacher = RefinementBlock(student.channels, affine=not anchored)
        self.offsets = OffsetField(student.channels)
        self.standardize = nn.BatchNorm2d(student.channels, affine=False) if anchored else None
        self.classify = nn.Conv2d(student.channels, anchor_classes, 1) if anchored else None

    def count(self, labels: Labels, pixels: Pixels = "labelled") -> Tensor:
        """Cells of the coarser grid: what the loss is a mean over; for the anchor, its labelled cells."""
        return labels.at(self.stride).count(pixels)

    def forward(
        self, student: Tensor, teacher: Tensor, labels: Labels, pixels: Pixels = "labelled"
    ) -> tuple[Tensor, Tensor | None]:
        """Distillation and anchor loss (None in the released form) of B C_s h_s w_s and B C_t h_t w_t (detached)."""
        check_maps(student, teacher, (self.student, self.teacher), labels)
        S, T, _ = self.sides(student, teacher, labels, pixels)
        cells, anchor = labels.at(self.stride), None
        if self.classify is not None:
            with full_precision(T):
                anchor = cross_entropy(self.classify(T), cells)
            T = T.detach()
        return masked_mean(channel_mean((T - S).square()), cells.mask(pixels)), anchor

    def sides(
        self, student: Tensor, teacher: Tensor, labels: Labels, pixels: Pixels
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """S, T', and the teacher's map after each step that leads to T'; arguments as of ``forward``."""
        grid, valid = labels.size(self.stride), labels.at(self.stride).mask(pixels)
        S, steps = fill_void(resize(student, grid), valid), {}
        T = steps["project"] = self.project(fill_void(resize(teacher.detach(), grid), valid))
        if self.context == "student":
            S = self_attention_context(S, valid)
        elif self.context == "teacher":
            T = steps["context"] = self_attention_context(T, valid)
        S, T = self.refine_student(S), self.refine_teacher(T)
        steps["refine"] = T
        T = steps["warp"] = warp(T, self.offsets((S if self.classify is None else S.detach()) * T))
        if self.standardize is not None:
            T = steps["standardize"] = self.standardize(T)
        return S, T, steps


class LogitAlignment(nn.Module):
    """KL between the teacher's class distribution and the student's; the teacher's logits are resized to its grid.

    ``num_classes`` and ``stride`` are those of the student's logits.
    """

    def __init__(self, num_classes: int, stride: int, temperature: float):
        super().__init__()
        self.logits, self.temperature = Tap(num_classes, stride), temperature

    def count(self, labels: Labels, pixels: Pixels = "labelled") -> Tensor:
        """Compared cells of the student's logit grid."""
        return labels.at(self.logits.stride).count(pixels)

    def forward(self, student: Tensor, teacher: Tensor, labels: Labels, pixels: Pixels = "labelled") -> Tensor:
        """Scalar loss from logits B K h w (student), B K h' w' (teacher; detached) and the labels."""
        check_maps(student, teacher, (self.logits, self.logits), labels, "logits")
        target = resize(as_float(teacher.detach()), student.shape[-2:])
        return kl_divergence(student, target, labels.at(self.logits.stride).mask(pixels), self.temperature)


class StageLogitAlignment(nn.Module):
    """``LogitAlignment`` of a ``class_exit`` on every student stage, mean over the stages.

    The logits of each exit are resized to the student's logit grid, so that every stage is a mean over the same cells.
    The taps named ``stage*`` get an exit.
    """

    def __init__(self, student: ModelSpec, temperature: float):
        super().__init__()
        self.align = LogitAlignment(student.num_classes, student.taps["head"].stride, temperature)
        self.strides = {name: tap.stride for name, tap in student.taps.items() if name.startswith("stage")}
        self.heads = nn.ModuleDict(
            {name: class_exit(student.taps[name].channels, student.num_classes) for name in self.strides}
        )

    def count(self, labels: Labels, pixels: Pixels = "labelled") -> Tensor:
        """Compared cells of the student's logit grid."""
        return self.align.count(labels, pixels)

    def forward(
        self, student: dict[str, Tensor], teacher: Tensor, labels: Labels, pixels: Pixels = "labelled"
    ) -> Tensor:
        """Scalar loss from the student's taps, the teacher's logits B K h' w' (detached) and the labels."""
        size, losses = labels.size(self.align.logits.stride), []
        with full_precision(teacher):
            for name, head in self.heads.items():
                logits = head(fill_void(as_float(student[name]), labels.at(self.strides[name]).mask(pixels)))
                losses.append(self.align(resize(logits, size), teacher, labels, pixels))
        return torch.stack(losses).mean()


class PatchRelation(nn.Module):
    """How much each patch of a map attends to each other: softmax(Q K^T / sqrt(d)) over embedded P x P patches."""

    def __init__(self, channels: int, dim: int, patch: int):
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Map B C h w (h, w multiples of P) and valid tokens B n -> tokens B n d, relation B n n (rows sum to 1)."""
        tokens = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) / tokens.shape[-1] ** 0.5
        # The lowest finite number, not -inf: the rows of a sample without a valid key are then uniform, not NaN.
        return tokens, scores.masked_fill(~valid[:, None, :], torch.finfo(scores.dtype).min).softmax(-1)


class RelationAlignment(nn.Module):
    """Mean squared distance between the two sides' patch relations.

        loss = mean over valid rows i and all n columns j of (P_t - P_s)_ij^2

    The teacher's map is resized bilinearly to the student's grid first, and grids that P does not divide are padded,
    so that both sides have n = ceil(h / P) ceil(w / P) tokens. A token is valid if any of its cells is compared. The
    release sums over n^2 and the batch: if all tokens are valid, B n^2 times this loss. This loss is of the order of
    n^-2 (rows sum to 1), so its weight must be large.

    Anchored, a classifier on P_t V_t (V_t the tokens) learns each token's majority label, and P_t enters the loss
    detached. The student's queries start at 0, so P_s starts uniform, which is the best guess if P_t is unrelated.

    Args:
        anchor_classes: as in ``FeatureAlignment``.
        patch: P, in cells of the student's grid.
    """

    def __init__(self, student: Tap, teacher: Tap, patch: int, anchor_classes: int | None):
        super().__init__()
        self.student, self.teacher, self.patch = student, teacher, patch
        self.relate_student = PatchRelation(student.channels, student.channels, patch)
        self.relate_teacher = PatchRelation(teacher.channels, student.channels, patch)
        self.classify = None
        if anchor_classes is not None:
            self.classify = nn.Linear(student.channels, anchor_classes)
            nn.init.zeros_(self.relate_student.query.weight)
            nn.init.zeros_(self.relate_student.query.bias)

    def count(self, labels: Labels, pixels: Pixels = "labelled") -> Tensor:
        """Valid tokens: what the loss is a mean over; for the anchor, tokens with a labelled cell."""
        return self._tokens(labels).mask(pixels).any(-1).sum().float()

    def _tokens(self, labels: Labels) -> Grid:
        return labels.patches(self.student.stride, self.patch)

    def forward(
        self, student: Tensor, teacher: Tensor, labels: Labels, pixels: Pixels = "labelled"
    ) -> tuple[Tensor, Tensor | None]:
        """Distillation loss and anchor loss (None in the released form); arguments as in ``FeatureAlignment``."""
        check_maps(student, teacher, (self.student, self.teacher), labels)
        h, w = student.shape[-2:]
        patches, compared = self._tokens(labels), labels.at(self.student.stride).mask(pixels)
        valid = patches.mask(pixels).any(-1)

        def prepare(x: Tensor) -> Tensor:
            return F.pad(fill_void(x, compared), (0, -w % self.patch, 0, -h % self.patch))

        with full_precision(student):
            _, P_s = self.relate_student(prepare(as_float(student)), valid)
            V_t, P_t = self.relate_teacher(prepare(resize(as_float(teacher.detach()), (h, w))), valid)
            anchor = None
            if self.classify is not None:
                logits = self.classify(P_t @ V_t).transpose(1, 2)  # B K n
                majority = Grid(majority_labels(patches, logits.shape[1])[..., None])
                anchor = cross_entropy(logits[..., None], majority)
                P_t = P_t.detach()
            return masked_mean((P_t - P_s).square().mean(-1), valid), anchor


class MaskedGeneration(nn.Module):
    """Predicts the teacher's map from a random part of the student's cells: G(M * align(S)).

    align is a 1x1 convolution (the identity, if the widths agree), G is conv3x3-ReLU-conv3x3 and M keeps each cell with
    probability 1 - ``mask_ratio``, drawn from PyTorch's global generator in training and in evaluation.

    Args:
        mask_ratio: share of the cells that are masked, in [0, 1).
    """

    def __init__(self, student: Tap, teacher: Tap, mask_ratio: float):
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}; expected 0 or more and less than 1")
        C = teacher.channels
        self.mask_ratio = mask_ratio
        self.align = nn.Identity() if student.channels == C else nn.Conv2d(student.channels, C, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(C, C, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(C, C, 3, padding=1)
        )

    def forward(self, student: Tensor, valid: Tensor) -> Tensor:
        """B C_s h w, B h w bool -> B C_t h w; cells that are not valid are masked too."""
        kept = valid & (torch.rand(valid.shape, device=valid.device) <= 1 - self.mask_ratio)
        return self.generate(fill_void(self.align(student), kept))
