"""HMKD: heterogeneous distillation by dual alignment, in feature space and in logit space."""

from torch import Tensor, nn

from losses.alignment import FeatureAlignment, LogitAlignment, RelationAlignment, StageLogitAlignment
from losses.base import METHODS, Method
from losses.checks import Pairs, check_classes, check_pairs, check_weights
from models.base import ModelSpec, SegOutput
from utils.names import unknown_name


@METHODS.register("hmkd")
class HMKD(Method):
    """Dual alignment between networks of any two families.

        L = L_task + feature * L_feature + logit * L_logit + relation * L_relation + stage_logit * L_stage_logit
                   + anchor_weight * (L_anchor + L_relation_anchor)

    where L_feature, L_relation and their anchors are means over their pairs. With several pairs each is a term of its
    own (``'feature/stage3-stage4'``, ``'anchor/stage3-stage4'``: teacher's tap first) with its share of the weight.
    A term of weight 0 is not built. When the families differ, the CNN's map gets global context by self-attention
    before it is compared. ``losses/alignment.py`` has the terms and what *anchored* means.

    Xu et al., "Heterogeneous Model Knowledge Distillation via Dual Alignment for Semantic Segmentation", ICMR 2025,
    doi 10.1145/3731715.3733354.

    Args:
        student, teacher: what the two networks declare.
        feature, logit, relation, stage_logit: weights of the terms, 0 or more.
        anchor: ``'labels'``, or None for the released form, in which the distillation loss trains the teacher side.
        anchor_weight: weight of the anchors; only with ``anchor='labels'``, and then positive.
        feature_pairs, relation_pairs: (teacher's tap, student's tap) of each alignment.
        temperature: T of both logit terms.
        patch: side of the relation's patches, in cells of the student's tap.

    Raises:
        ValueError: if the class counts differ, a tap is unknown, a pair is repeated or missing, or a value makes no
            sense.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        feature: float = 1.0,
        logit: float = 1.0,
        relation: float = 0.0,
        stage_logit: float = 0.0,
        anchor: str | None = "labels",
        anchor_weight: float = 1.0,
        feature_pairs: Pairs = (("stage3", "stage3"),),
        relation_pairs: Pairs = (("stage1", "stage1"),),
        temperature: float = 1.0,
        patch: int = 8,
    ):
        super().__init__()
        check_classes(student, teacher)
        check_weights(feature=feature, logit=logit, relation=relation, stage_logit=stage_logit)
        _check_anchor(anchor, anchor_weight)
        if temperature <= 0 or patch < 1:
            raise ValueError(f"temperature is {temperature}, patch {patch}; expected temperature > 0 and patch >= 1")
        check_pairs("feature_pairs", feature_pairs, student, teacher)
        check_pairs("relation_pairs", relation_pairs, student, teacher)
        classes = student.num_classes if anchor else None
        context = None
        if student.family != teacher.family:
            context = "student" if student.family == "cnn" else "teacher"

        self.weights: dict[str, float] = {}
        self.taps: dict[str, tuple[str, str]] = {}  # distillation term -> (teacher's tap, student's tap)
        self.anchors: dict[str, str] = {}  # distillation term -> the term of its anchor
        self.alignments = nn.ModuleDict()  # distillation term -> its module
        if feature:
            for t, s in feature_pairs:
                align = FeatureAlignment(student.taps[s], teacher.taps[t], context, classes)
                self._add("feature", feature, "anchor", anchor_weight, (t, s), align, len(feature_pairs))
        if relation:
            for t, s in relation_pairs:
                align = RelationAlignment(student.taps[s], teacher.taps[t], patch, classes)
                self._add("relation", relation, "relation_anchor", anchor_weight, (t, s), align, len(relation_pairs))
        if logit:
            self.alignments["logit"] = LogitAlignment(student.num_classes, student.taps["head"].stride, temperature)
            self.weights["logit"] = float(logit)
        if stage_logit:
            self.alignments["stage_logit"] = StageLogitAlignment(student, temperature)
            self.weights["stage_logit"] = float(stage_logit)

    def _add(
        self,
        term: str,
        weight: float,
        anchor_term: str,
        anchor_weight: float,
        pair: tuple[str, str],
        align: FeatureAlignment | RelationAlignment,
        pairs: int,
    ) -> None:
        """One pair's alignment and its terms, each with its share of the weight among ``pairs`` pairs."""
        suffix = f"/{pair[0]}-{pair[1]}" if pairs > 1 else ""
        name = term + suffix
        self.taps[name], self.alignments[name], self.weights[name] = pair, align, weight / pairs
        if align.classify is not None:
            self.anchors[name] = anchor_term + suffix
            self.weights[self.anchors[name]] = anchor_weight / pairs

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms, in the order of ``weights`` (see ``Method.forward``)."""
        terms = {}
        for name, (teacher_tap, student_tap) in self.taps.items():
            align = self.alignments[name]
            terms[name], anchor = align(student.taps[student_tap], teacher.taps[teacher_tap], labels)
            if name in self.anchors:
                terms[self.anchors[name]] = anchor
        if "logit" in self.weights:
            terms["logit"] = self.alignments["logit"](student.logits, teacher.logits, labels)
        if "stage_logit" in self.weights:
            terms["stage_logit"] = self.alignments["stage_logit"](student.taps, teacher.logits, labels)
        return terms

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Valid cells or tokens that each term is a mean over; an anchor has as many as what it anchors."""
        counts = {name: align.count(labels) for name, align in self.alignments.items()}
        return counts | {anchor: counts[name] for name, anchor in self.anchors.items()}


def _check_anchor(anchor: str | None, anchor_weight: float) -> None:
    if anchor is None:
        return
    if anchor != "labels":
        raise unknown_name("anchor", anchor, ["labels"])
    if anchor_weight <= 0:
        raise ValueError(
            f"anchor_weight is {anchor_weight}, so the teacher side would never learn: give it a positive weight, or "
            "anchor=None for the released form"
        )
