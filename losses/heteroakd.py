"""HeteroAKD: the two networks' features are compared as class logits; the target is mixed from both by their errors."""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.alignment import LogitAlignment
from losses.base import INSIDE, METHODS, FeatureMethod, class_ids, on_student_grid, pair_terms
from losses.checks import Pairs, check_logits, check_weights
from losses.functional import full_precision, masked_mean
from losses.labels import Labels, Pixels
from models.base import ModelSpec, SegOutput, Tap
from utils.names import VOID

FEATURE, ANCHOR, LOGIT = "heteroakd_feature", "heteroakd_anchor", "heteroakd_logit"  # names of the terms


def errors(logits: Tensor, y: Tensor) -> Tensor:
    """B K h w logits and one-hot labels -> H: binary cross-entropy of each class against the rest, B K h w."""
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none")


def mix_knowledge(student_logits: Tensor, teacher_logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mixed target and the weight of each class in each cell, from logits Z and one-hot labels B K h w.

    Z_h = S Z_t + (1 - S) Z_s with S = 1 - H_t / (H_t + H_s): the side with the smaller error has the larger share (if
    neither has an error, the student has all of it). W = softmax over classes of H_s + max(0, H_s - H_h): largest where
    the student can improve most.
    """
    H_s, H_t = errors(student_logits, y), errors(teacher_logits, y)
    S = H_s / (H_s + H_t).where(H_s + H_t > 0, 1)
    Z_h = S * teacher_logits + (1 - S) * student_logits
    return Z_h, (H_s + (H_s - errors(Z_h, y)).clamp(min=0)).softmax(1)


def weighted_cross_entropy(Z_s: Tensor, Z_h: Tensor, W: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """-T^2 sum_c W_c p_h(c) log p_s(c), p = softmax(Z / T), mean over ``valid``; least at p_s = W p_h / sum W p_h."""
    p_h, log_p_s = (Z_h / temperature).softmax(1), F.log_softmax(Z_s / temperature, dim=1)
    return -(temperature**2) * masked_mean((W * p_h * log_p_s).sum(1), valid)


class HybridAlignment(nn.Module):
    """``weighted_cross_entropy`` of one pair of maps, in class space.

    Each side's map (the teacher's is resized to the student's grid) is standardised over the batch, channel by channel,
    and classified by a 1x1 convolution. Z_h and W are constants. The anchor is the error H of both classifiers, mean
    over labelled cells and classes. It trains the classifiers and reaches neither network; the teacher-side classifier
    learns from nothing else.
    """

    def __init__(self, student: Tap, teacher: Tap, num_classes: int, temperature: float):
        super().__init__()
        self.taps, self.temperature = (student, teacher), temperature
        self.standardize = nn.ModuleList(nn.BatchNorm2d(tap.channels, affine=False) for tap in (student, teacher))
        self.classify = nn.ModuleList(nn.Conv2d(tap.channels, num_classes, 1) for tap in (student, teacher))

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Labels,
        pixels: Pixels = "labelled",
        teacher_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Distillation loss and anchor loss of B C_s h w and B C_t h' w' (detached); logits for ``class_ids``."""
        with full_precision(student):
            *maps, valid = on_student_grid(student, teacher, labels, self.taps, pixels)
            grid = labels.at(self.taps[0].stride)
            cells = class_ids(grid, teacher_logits, pixels)
            s, t = (norm(x) for norm, x in zip(self.standardize, maps, strict=True))
            Z_s = self.classify[0](s)
            exits = self.classify[0](s.detach()), self.classify[1](t)
            y = F.one_hot(cells.long().masked_fill(cells == VOID, 0), Z_s.shape[1]).permute(0, 3, 1, 2).to(Z_s)
            anchor = masked_mean(sum(errors(Z, y).mean(1) for Z in exits), grid.labelled)
            Z_h, W = (x.detach() for x in mix_knowledge(*exits, y))
            return weighted_cross_entropy(Z_s, Z_h, W, valid, self.temperature), anchor


@METHODS.register("heteroakd")
class HeteroAKD(FeatureMethod):
    """Heterogeneous distillation of features as class logits, and pixel-wise distillation of the logits.

        L = L_task + feature * L_feature + anchor * L_anchor + logit * L_logit

    with L_feature and L_anchor of ``HybridAlignment`` and L_logit the T^2 KL of the logits. With ``pixels='inside'``,
    the teacher's most probable class replaces a missing label in L_feature.

    Huang, Hu, Zhang, Chen, Gao: "Distilling Knowledge from Heterogeneous Architectures for Semantic Segmentation",
    AAAI 2025 (arXiv 2504.07691): knowledge mixing and evaluation. We could read neither its text nor its authors' code.
    S, W and the loss (its equations 5 to 10) follow the reimplementation github.com/tiny-ticop/FM2Edge, whose value is
    ours / (K T^2) (measured). **To be verified**: another public reimplementation agrees on Z_h and on
    H_s + max(0, H_s - H_h), but not on these points:

    - Here the softmax of W is over classes (there over cells). T is 1 (4 in both).
    - Here the loss is least where p_s is proportional to W p_h, not at p_h. (There it is a binary KL of each class,
      least at p_h.)
    - The exits: both reimplementations say that the paper's are conv1x1-BN-ReLU. We use no ReLU, because after a ReLU
      no logit can be negative and so no class can be ruled out. How the exits learn: the anchor is ours, so that H is
      an error.

    Args:
        feature, logit: weights of the terms ``'heteroakd_feature'`` and ``'heteroakd_logit'``, 0 or more.
        anchor: weight of ``'heteroakd_anchor'``, the exits' own term; positive.
        pairs: (teacher's tap, student's tap) of each alignment. With several, each has its own terms, named by
            ``losses.base.pair_terms``.
        temperature: T of L_feature and L_logit.

    Raises:
        ValueError: if the teacher gives no logits or other classes and ``logit`` is on or ``pixels`` is 'inside'; if
            a tap is unknown, a pair is repeated or missing, or a value makes no sense.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        feature: float = 1.0,
        logit: float = 0.1,
        anchor: float = 1.0,
        pairs: Pairs = (("stage4", "stage4"),),
        temperature: float = 1.0,
        pixels: Pixels = "labelled",
    ):
        check_weights(feature=feature, logit=logit)
        super().__init__(student, teacher, FEATURE, feature, pairs, pixels)
        if logit:
            check_logits(self, student, teacher, "set logit=0")
        elif pixels == "inside":
            check_logits(self, student, teacher, "set pixels='labelled'", INSIDE)
        if temperature <= 0 or anchor <= 0:
            raise ValueError(f"temperature is {temperature}, anchor {anchor}; expected both > 0")
        K = student.num_classes
        anchors = pair_terms(ANCHOR, list(self.pairs.values()))
        self.anchors = dict(zip(self.pairs, anchors, strict=True))  # term -> the term of its anchor
        self.alignments = nn.ModuleDict()  # term -> its module
        self.weights = {}
        for name, taps in self.taps.items():
            self.alignments[name] = HybridAlignment(*taps, K, temperature)
            self.weights[name], self.weights[self.anchors[name]] = feature / len(pairs), anchor / len(pairs)
        if logit:
            self.alignments[LOGIT] = LogitAlignment(K, student.taps["head"].stride, temperature)
            self.weights[LOGIT] = float(logit)

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        """Unweighted terms, in the order of ``weights`` (see ``Method.forward``)."""
        terms = {}
        for name, (t, s) in self.pairs.items():
            terms[name], terms[self.anchors[name]] = self.alignments[name](
                student.taps[s], teacher.taps[t], labels, self.pixels, teacher.logits
            )
        if LOGIT in self.weights:
            terms[LOGIT] = self.alignments[LOGIT](student.logits, teacher.logits, labels, self.pixels)
        return terms

    def targets(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, dict[str, Tensor]]:
        """The teacher's class logits, before they are mixed with the student's (see ``Method.targets``)."""
        found = super().targets(student, teacher, labels)
        for name, steps in found.items():
            align = self.alignments[name]
            steps["exit"] = align.classify[1](align.standardize[1](steps[self.pairs[name][0]]))
        return found

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells of the student's tap (for an anchor the labelled ones), and of its logits."""
        counts = super().counts(labels)
        counts |= {
            anchor: labels.at(self.taps[name][0].stride).count("labelled") for name, anchor in self.anchors.items()
        }
        return counts | ({LOGIT: self.alignments[LOGIT].count(labels, self.pixels)} if LOGIT in self.weights else {})
