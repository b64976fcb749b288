"""HMKD: heterogeneous distillation by dual alignment, in feature space and in logit space."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from losses.alignment import FeatureAlignment, LogitAlignment, RelationAlignment, StageLogitAlignment
from losses.base import METHODS, Method, pair_terms
from losses.checks import Pairs, check_logits, check_pairs, check_weights
from losses.frame import FrameAlignment, Moments
from losses.labels import Labels, Pixels
from models.base import ModelSpec, SegOutput
from utils.names import unknown_name


@METHODS.register("hmkd")
class HMKD(Method):
    """Dual alignment between networks of any two families.

        L = L_task + feature * L_feature + logit * L_logit + relation * L_relation + stage_logit * L_stage_logit
                   + anchor_weight * (L_anchor + L_relation_anchor)

    where L_feature, L_relation and their anchors are means over their pairs. With several pairs each is a term by
    itself, named by ``losses.base.pair_terms``. A term of weight 0 is not built. ``losses/alignment.py`` defines the
    terms and *anchored*. What the student's features learn (``target``) is

    - ``'frame'``: the teacher's features in a fixed frame, which is measured once (``losses/frame.py``);
    - ``'learned'``: what modules on the teacher's side make of them. If the families differ, the CNN's map gets global
      context by self-attention before it is compared.

    The defaults are those of ``configs/_base_/methods/hmkd_anchored.py``, so that configs of runs that are older than
    the frame keep their meaning; ``configs/_base_/methods/hmkd.py`` is the recommended form.

    Xu et al., "Heterogeneous Model Knowledge Distillation via Dual Alignment for Semantic Segmentation", ICMR 2025,
    doi 10.1145/3731715.3733354.

    Args:
        feature, logit, relation, stage_logit: weights of the terms, 0 or more.
        target: of the feature alignment, ``'frame'`` or ``'learned'``.
        anchor: ``'labels'``, or None for the released form, in which the distillation loss trains the teacher side.
            Of the relation, and of the features if ``target='learned'``.
        anchor_weight: weight of the anchors; only with ``anchor='labels'``, and then positive.
        feature_pairs, relation_pairs: (teacher's tap, student's tap) of each alignment.
        temperature: T of both logit terms.
        patch: side of the relation's patches, in cells of the student's tap.

    Raises:
        ValueError: if a logit term is on and the teacher gives no logits or other classes, a tap is unknown, a pair is
            repeated or missing, or a value makes no sense.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        feature: float = 1.0,
        logit: float = 1.0,
        relation: float = 0.0,
        stage_logit: float = 0.0,
        target: Literal["frame", "learned"] = "learned",
        anchor: str | None = "labels",
        anchor_weight: float = 1.0,
        feature_pairs: Pairs = (("stage3", "stage3"),),
        relation_pairs: Pairs = (("stage1", "stage1"),),
        temperature: float = 1.0,
        patch: int = 8,
        pixels: Pixels = "labelled",
    ):
        super().__init__(pixels)
        self.needs_calibration = target == "frame" and feature > 0
        if logit or stage_logit:
            check_logits(self, student, teacher, "set logit=0 and stage_logit=0")
        check_weights(feature=feature, logit=logit, relation=relation, stage_logit=stage_logit)
        if target not in ("frame", "learned"):
            raise unknown_name("target", target, ["frame", "learned"])
        _check_anchor(anchor, anchor_weight)
        if temperature <= 0 or patch < 1:
            raise ValueError(f"temperature is {temperature}, patch {patch}; expected temperature > 0 and patch >= 1")
        classes = student.num_classes if anchor else None
        context = None
        if student.family != teacher.family:
            context = "student" if student.family == "cnn" else "teacher"

        self.weights: dict[str, float] = {}
        self.pairs = {}
        self.anchors: dict[str, str] = {}  # distillation term -> the term of its anchor
        self.alignments = nn.ModuleDict()  # distillation term -> its module
        if target == "frame":
            features: tuple[str | None, Callable] = None, FrameAlignment
        else:
            features = "anchor", partial(FeatureAlignment, context=context, anchor_classes=classes)
        relate = partial(RelationAlignment, patch=patch, anchor_classes=classes)
        for term, weight, pairs, (anchor_term, build) in (
            ("feature", feature, feature_pairs, features),
            ("relation", relation, relation_pairs, ("relation_anchor", relate)),
        ):
            if not weight:
                continue
            check_pairs(f"{term}_pairs", pairs, student, teacher)
            for name, (t, s) in pair_terms(term, pairs).items():
                self.alignments[name] = build(student.taps[s], teacher.taps[t])
                self.pairs[name], self.weights[name] = (t, s), weight / len(pairs)
                if anchor and anchor_term:
                    anchor_name = name.replace(term, anchor_term, 1)
                    self.anchors[name], self.weights[anchor_name] = anchor_name, anchor_weight / len(pairs)
        if logit:
            self.alignments["logit"] = LogitAlignment(student.num_classes, student.taps["head"].stride, temperature)
            self.weights["logit"] = float(logit)
        if stage_logit:
            self.alignments["stage_logit"] = StageLogitAlignment(student, temperature)
            self.weights["stage_logit"] = float(stage_logit)

    def calibrate(self, outputs: Callable[[], Iterable[tuple[SegOutput, Labels]]]) -> None:
        """Measures the frames of the feature alignment (see ``Method.calibrate``)."""
        frames = {name: each for name, each in self.alignments.items() if isinstance(each, FrameAlignment)}
        moments = dict.fromkeys(frames, Moments())
        for teacher, labels in outputs() if frames else ():
            for name, frame in frames.items():
                moments[name] = frame.measure(teacher.taps[self.pairs[name][0]], labels, moments[name])
        for name, frame in frames.items():
            frame.fix(moments[name])

    def targets(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, dict[str, Tensor]]:
        """Of the feature alignment, every step of the teacher's side (see ``Method.targets``)."""
        found = super().targets(student, teacher, labels)
        for name, (t, s) in self.pairs.items():
            if isinstance(align := self.alignments[name], FeatureAlignment | FrameAlignment):
                found[name] |= align.sides(student.taps[s], teacher.taps[t], labels, self.pixels)[-1]
        return found

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        """Unweighted terms, in the order of ``weights`` (see ``Method.forward``)."""
        terms = {}
        for name, (teacher_tap, student_tap) in self.pairs.items():
            align = self.alignments[name]
            terms[name], anchor = align(student.taps[student_tap], teacher.taps[teacher_tap], labels, self.pixels)
            if name in self.anchors:
                terms[self.anchors[name]] = anchor
        if "logit" in self.weights:
            terms["logit"] = self.alignments["logit"](student.logits, teacher.logits, labels, self.pixels)
        if "stage_logit" in self.weights:
            terms["stage_logit"] = self.alignments["stage_logit"](student.taps, teacher.logits, labels, self.pixels)
        return terms

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Cells or tokens that each term is a mean over; of an anchor the labelled ones."""
        counts = {name: align.count(labels, self.pixels) for name, align in self.alignments.items()}
        return counts | {anchor: self.alignments[name].count(labels) for name, anchor in self.anchors.items()}


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
