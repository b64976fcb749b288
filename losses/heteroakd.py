"""HeteroAKD: teacher and student meet in class space, mixed by which of them is right there."""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.alignment import LogitAlignment
from losses.base import METHODS, Method
from losses.checks import Pairs, check_classes, check_pairs, check_shape, check_weights
from losses.functional import as_float, fill_void, full_precision, masked_mean, resize
from losses.labels import count_valid, shrink_labels, tap_grid
from models.base import ModelSpec, SegOutput, Tap
from utils.names import VOID

FEATURE, ANCHOR, LOGIT = "heteroakd_feature", "heteroakd_anchor", "heteroakd_logit"  # names of the terms


def errors(logits: Tensor, y: Tensor) -> Tensor:
    """B K h w logits and one-hot labels -> H: binary cross-entropy of each class against the rest, B K h w."""
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none")


def mix_knowledge(student_logits: Tensor, teacher_logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mixed target and the weight of each class in each cell, from logits Z and one-hot labels B K h w.

    Z_h = S Z_t + (1 - S) Z_s with S = 1 - H_t / (H_t + H_s): the one who errs less counts more (where neither errs,
    the student). W = softmax over classes of H_s + max(0, H_s - H_h): most where the student has most to gain.
    """
    H_s, H_t = errors(student_logits, y), errors(teacher_logits, y)
    S = H_s / (H_s + H_t).where(H_s + H_t > 0, 1)
    Z_h = S * teacher_logits + (1 - S) * student_logits
    return Z_h, (H_s + (H_s - errors(Z_h, y)).clamp(min=0)).softmax(1)


def weighted_cross_entropy(Z_s: Tensor, Z_h: Tensor, W: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """-T^2 sum_c W_c p_h(c) log p_s(c), p = softmax(Z / T), mean over valid cells; least at p_s = W p_h / sum W p_h."""
    p_h, log_p_s = (Z_h / temperature).softmax(1), F.log_softmax(Z_s / temperature, dim=1)
    return -(temperature**2) * masked_mean((W * p_h * log_p_s).sum(1), valid)


class HybridAlignment(nn.Module):
    """``weighted_cross_entropy`` of one pair of maps, in class space.

    Each side's map, the teacher's resized to the student's grid, is standardised over the batch, channel by channel,
    and classified by a 1x1 convolution. Z_h and W are constants. The anchor, H of both sides' classifiers in the mean
    over cells and classes, trains them and reaches neither network; the teacher's learns from nothing else.

    Args:
        student, teacher: the declared taps.
        num_classes: K.
        temperature: T > 0.
    """

    def __init__(self, student: Tap, teacher: Tap, num_classes: int, temperature: float):
        super().__init__()
        self.student, self.teacher, self.temperature = student, teacher, temperature
        self.standardize = nn.ModuleList(nn.BatchNorm2d(tap.channels, affine=False) for tap in (student, teacher))
        self.classify = nn.ModuleList(nn.Conv2d(tap.channels, num_classes, 1) for tap in (student, teacher))

    def count(self, labels: Tensor) -> Tensor:
        """Valid cells of the student's grid: what both terms are means over."""
        return count_valid(shrink_labels(labels, tap_grid(labels, self.student.stride)))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Distillation loss and anchor loss, from maps B C_s h_s w_s and B C_t h_t w_t (detached) and labels B H W."""
        check_shape("the student's map", student, *self.student, labels)
        check_shape("the teacher's map", teacher, *self.teacher, labels)
        with full_precision(student):
            cells = shrink_labels(labels, student.shape[-2:])
            valid = cells != VOID
            maps = as_float(student), resize(as_float(teacher.detach()), student.shape[-2:])
            s, t = (norm(fill_void(x, valid)) for norm, x in zip(self.standardize, maps, strict=True))
            Z_s = self.classify[0](s)
            exits = self.classify[0](s.detach()), self.classify[1](t)
            y = F.one_hot(cells.long().masked_fill(~valid, 0), Z_s.shape[1]).permute(0, 3, 1, 2).to(Z_s)
            anchor = masked_mean(sum(errors(Z, y).mean(1) for Z in exits), valid)
            Z_h, W = (x.detach() for x in mix_knowledge(*exits, y))
            return weighted_cross_entropy(Z_s, Z_h, W, valid, self.temperature), anchor


@METHODS.register("heteroakd")
class HeteroAKD(Method):
    """Heterogeneous distillation in class space, by who is right where, beside pixel-wise distillation of the logits.

        L = L_task + feature * L_feature + anchor * L_anchor + logit * L_logit

    with L_feature and L_anchor of ``HybridAlignment`` and L_logit the T^2 KL of the logits.

    Huang, Hu, Zhang, Chen, Gao: "Distilling Knowledge from Heterogeneous Architectures for Semantic Segmentation",
    AAAI 2025 (arXiv 2504.07691): knowledge mixing and evaluation. Neither its text nor its authors' code could be read
    for this: S, W and the loss (its equations 5 to 10) are as in github.com/tiny-ticop/FM2Edge, whose value is
    ours / (K T^2) (measured). **To be verified**: another public reimplementation agrees on Z_h and H_s + max(0, H_s -
    H_h), but not on the rest:

    - W's softmax is over classes (there over cells). T is 1 (4 in both).
    - The loss is least where p_s is proportional to W p_h, not at p_h. (There: a binary KL of each class, at p_h.)
    - Exits: both say that the paper's are conv1x1-BN-ReLU; a ReLU would leave no class ruled out. How the exits learn:
      the anchor is ours, so that H means an error.

    Args:
        student, teacher: what the two networks declare.
        feature, logit: weights of the terms ``'heteroakd_feature'`` and ``'heteroakd_logit'``, 0 or more.
        anchor: weight of ``'heteroakd_anchor'``, the exits' own term; positive.
        pairs: (teacher's tap, student's tap) of each alignment. With several, each has terms of its own
            (``'heteroakd_feature/stage4-stage4'``) with their share of the weights.
        temperature: T of L_feature and L_logit.

    Raises:
        ValueError: if logits of different classes would be compared, a tap is unknown, a pair is repeated or missing,
            or a value makes no sense.
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
    ):
        super().__init__()
        K = student.num_classes
        check_weights(feature=feature, logit=logit)
        if logit:
            check_classes(student, teacher)
        check_pairs("pairs", pairs, student, teacher)
        if temperature <= 0 or anchor <= 0:
            raise ValueError(f"temperature is {temperature}, anchor {anchor}; expected both > 0")
        self.weights: dict[str, float] = {}
        self.taps: dict[str, tuple[str, str]] = {}  # suffix of two terms -> (teacher's tap, student's tap)
        self.alignments = nn.ModuleDict()  # term -> its module
        for t, s in pairs if feature else ():
            suffix = f"/{t}-{s}" if len(pairs) > 1 else ""
            self.taps[suffix] = t, s
            self.alignments[FEATURE + suffix] = HybridAlignment(student.taps[s], teacher.taps[t], K, temperature)
            self.weights[FEATURE + suffix] = feature / len(pairs)
            self.weights[ANCHOR + suffix] = anchor / len(pairs)
        if logit:
            self.alignments[LOGIT] = LogitAlignment(K, student.taps["head"].stride, temperature)
            self.weights[LOGIT] = float(logit)

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms, in the order of ``weights`` (see ``Method.forward``)."""
        terms = {}
        for suffix, (t, s) in self.taps.items():
            align = self.alignments[FEATURE + suffix]
            terms[FEATURE + suffix], terms[ANCHOR + suffix] = align(student.taps[s], teacher.taps[t], labels)
        if LOGIT in self.weights:
            terms[LOGIT] = self.alignments[LOGIT](student.logits, teacher.logits, labels)
        return terms

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells of the student's tap (for an anchor too), and of its logits."""
        counts = {name: align.count(labels) for name, align in self.alignments.items()}
        return counts | {ANCHOR + suffix: counts[FEATURE + suffix] for suffix in self.taps}
