"""OFA: small exits turn the student's stages into class logits, which any teacher's logits can teach."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.alignment import class_exit
from losses.base import METHODS, NO_LOGITS, Method, class_ids
from losses.checks import check_logits, check_maps, check_weights
from losses.functional import as_float, fill_void, full_precision, masked_mean, resize
from losses.labels import Labels, Pixels
from models.base import ModelSpec, SegOutput, Tap
from utils.names import VOID, unknown_name


def enhanced_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, cells: Tensor, eps: float) -> Tensor:
    """-sum_c q_c log p_s(c) with q = (p_t + y)^eps - y, y the one-hot class; mean over compared cells.

    At eps = 1, q = p_t. With a larger eps, q grows at the true class and shrinks at the others, the more so the less
    certain the teacher is. For a given q the loss is least at p_s = q / sum q.

    Args:
        student_logits, teacher_logits: B K h w on one grid.
        cells: B h w class ids, ``VOID`` where nothing is compared.
        eps: 1 or more.
    """
    valid = cells != VOID
    s, t = (fill_void(as_float(x), valid) for x in (student_logits, teacher_logits))
    y = F.one_hot(cells.long().masked_fill(~valid, 0), s.shape[1]).permute(0, 3, 1, 2)
    q = (t.softmax(1) + y) ** eps - y
    return masked_mean(-(q * F.log_softmax(s, dim=1)).sum(1), valid)


@METHODS.register("ofa")
class OFA(Method):
    """One for all: ``enhanced_cross_entropy`` of the student's logits, and of exits on its stages, with the teacher's.

        L = L_task + stage * mean_i L(exit_i(stage i), z_t) + logit * L(z_s, z_t)

    Features of two families have little in common, but class logits mean the same in both. The method reads no feature
    of the teacher, so any teacher with logits fits. Everything is compared on the student's logit grid, to which the
    logits of the teacher and of the exits are resized. An exit is ``losses.alignment.class_exit``; cells that are not
    compared enter it as 0. With ``pixels='inside'``, the teacher's most probable class replaces a missing label.

    Hao, Guo, Han, Tang, Hu, Wang, Xu: "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation", NeurIPS 2023, applied to pixels instead of images. At equal logits the loss is that of
    github.com/Hao840/OFAKD at its T of 1 (ratio 1, measured). Differences: an exit there ends in one prediction for the
    image (strided convolutions or attention, then global pooling); here it keeps the grid. There the stages are summed,
    here averaged: its weight of 1 for each of four stages is our 4. Its eps is 1 by default and 1.5 in its published
    run.

    Args:
        stage, logit: weights of the terms ``'ofa_stage'`` and ``'ofa_logit'``, 0 or more.
        eps: of the enhancement; 1 (none) or more.
        stages: the student's taps that get an exit.

    Raises:
        ValueError: if the teacher gives no logits or other classes, a tap is unknown, repeated or missing, or a value
            makes no sense.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        stage: float = 4.0,
        logit: float = 1.0,
        eps: float = 1.5,
        stages: Sequence[str] = ("stage1", "stage2", "stage3", "stage4"),
        pixels: Pixels = "labelled",
    ):
        super().__init__(pixels)
        check_logits(self, student, teacher, NO_LOGITS)
        check_weights(stage=stage, logit=logit)
        if eps < 1:
            raise ValueError(f"eps is {eps}; expected 1 or more")
        if not stages or isinstance(stages, str) or len(set(stages)) != len(stages):
            raise ValueError(f"stages is {stages}: expected a list of one or more different taps of the student")
        for tap in stages:
            if tap not in student.taps:
                raise unknown_name("student tap in stages", tap, student.taps)
        self.eps, self.logits = eps, Tap(student.num_classes, student.taps["head"].stride)
        self.strides = {tap: student.taps[tap].stride for tap in (stages if stage else ())}
        weights = {"ofa_stage": float(stage), "ofa_logit": float(logit)}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.exits = nn.ModuleDict(
            {tap: class_exit(student.taps[tap].channels, student.num_classes) for tap in self.strides}
        )

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        check_maps(student.logits, teacher.logits, (self.logits, self.logits), labels, "logits")
        size, terms = student.logits.shape[-2:], {}
        cells = class_ids(labels.at(self.logits.stride), teacher.logits, self.pixels)
        with full_precision(student.logits):
            target = resize(as_float(teacher.logits.detach()), size)
            if "ofa_stage" in self.weights:
                losses = []
                for tap, exit_ in self.exits.items():
                    valid = labels.at(self.strides[tap]).mask(self.pixels)
                    logits = exit_(fill_void(as_float(student.taps[tap]), valid))
                    losses.append(enhanced_cross_entropy(resize(logits, size), target, cells, self.eps))
                terms["ofa_stage"] = torch.stack(losses).mean()
            if "ofa_logit" in self.weights:
                terms["ofa_logit"] = enhanced_cross_entropy(student.logits, target, cells, self.eps)
        return terms

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells of the student's logits."""
        return dict.fromkeys(self.weights, labels.at(self.logits.stride).count(self.pixels))
