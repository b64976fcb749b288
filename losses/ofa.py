"""OFA: the student's stages speak through exits in the classes' space, where any teacher can answer them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.base import METHODS, Method
from losses.checks import check_classes, check_weights
from losses.functional import as_float, fill_void, full_precision, masked_mean, resize
from losses.labels import count_valid, shrink_labels, tap_grid, valid_cells
from models.base import ModelSpec, SegOutput
from utils.names import VOID, unknown_name

WIDTH = 64  # hidden channels of an exit


def enhanced_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, cells: Tensor, eps: float) -> Tensor:
    """-sum_c q_c log p_s(c) with q = (p_t + y)^eps - y, y the one-hot label; mean over valid cells.

    From eps = 1, where q = p_t, upwards: q grows at the true class and shrinks at the others, the more the less sure
    the teacher is of them. Its least value for a given q is at p_s = q / sum q.

    Args:
        student_logits, teacher_logits: B K h w on one grid.
        cells: B h w class ids, 255 where void.
        eps: 1 or more.
    """
    valid = cells != VOID
    s, t = (fill_void(as_float(x), valid) for x in (student_logits, teacher_logits))
    y = F.one_hot(cells.long().masked_fill(~valid, 0), s.shape[1]).permute(0, 3, 1, 2)
    q = (t.softmax(1) + y) ** eps - y
    return masked_mean(-(q * F.log_softmax(s, dim=1)).sum(1), valid)


@METHODS.register("ofa")
class OFA(Method):
    """One for all: ``enhanced_cross_entropy`` of exits on the student's stages, and of its logits, with the teacher's.

        L = L_task + stage * mean_i L(exit_i(stage i), z_t) + logit * L(z_s, z_t)

    The features of two families have little in common, but class logits mean the same. No feature of the teacher is
    read, so any teacher fits. All is compared on the student's logit grid, to which the teacher's logits and the exits'
    are resized. An exit is conv1x1-BN-ReLU-conv1x1 (64 hidden channels); void cells enter it as 0.

    Hao, Guo, Han, Tang, Hu, Wang, Xu: "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation", NeurIPS 2023, brought from images to pixels. The loss is that of github.com/Hao840/OFAKD, a pixel in
    the place of an image (ratio 1 at equal logits, measured), at its T of 1. An exit there ends in one prediction for
    the image (strided convolutions or attention, then global pooling); here it keeps the grid. There the stages are
    summed, here averaged: its weight 1 for each of four is our 4. Its eps is 1 by default, 1.5 in its published run.

    Args:
        student, teacher: what the two networks declare.
        stage, logit: weights of the terms ``'ofa_stage'`` and ``'ofa_logit'``, 0 or more.
        eps: of the enhancement; 1 (none) or more.
        stages: the student's taps that get an exit.

    Raises:
        ValueError: if the class counts differ, a tap is unknown, repeated or missing, or a value makes no sense.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        stage: float = 4.0,
        logit: float = 1.0,
        eps: float = 1.5,
        stages: Sequence[str] = ("stage1", "stage2", "stage3", "stage4"),
    ):
        super().__init__()
        check_classes(student, teacher)
        check_weights(stage=stage, logit=logit)
        if eps < 1:
            raise ValueError(f"eps is {eps}; expected 1 or more")
        if not stages or isinstance(stages, str) or len(set(stages)) != len(stages):
            raise ValueError(f"stages is {stages}: expected a list of one or more different taps of the student")
        for tap in stages:
            if tap not in student.taps:
                raise unknown_name("student tap in stages", tap, student.taps)
        self.eps, self.stride = eps, student.taps["head"].stride
        weights = {"ofa_stage": float(stage), "ofa_logit": float(logit)}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.exits = nn.ModuleDict(
            {
                tap: nn.Sequential(
                    nn.Conv2d(student.taps[tap].channels, WIDTH, 1, bias=False),
                    nn.BatchNorm2d(WIDTH),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(WIDTH, student.num_classes, 1),
                )
                for tap in (stages if stage else ())
            }
        )

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms (see ``Method.forward``)."""
        size, terms = tap_grid(labels, self.stride), {}
        cells = shrink_labels(labels, size)
        with full_precision(student.logits):
            target = resize(as_float(teacher.logits.detach()), size)
            if "ofa_stage" in self.weights:
                losses = []
                for tap, exit_ in self.exits.items():
                    x = as_float(student.taps[tap])
                    logits = exit_(fill_void(x, valid_cells(labels, x.shape[-2:])))
                    losses.append(enhanced_cross_entropy(resize(logits, size), target, cells, self.eps))
                terms["ofa_stage"] = torch.stack(losses).mean()
            if "ofa_logit" in self.weights:
                terms["ofa_logit"] = enhanced_cross_entropy(student.logits, target, cells, self.eps)
        return terms

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's logits."""
        return dict.fromkeys(self.weights, count_valid(shrink_labels(labels, tap_grid(labels, self.stride))))
