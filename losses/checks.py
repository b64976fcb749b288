"""What every method checks of its arguments before anything is built."""

from collections.abc import Sequence

from torch import Tensor

from losses.labels import tap_grid
from models.base import ModelSpec
from utils.names import unknown_name

Pairs = Sequence[tuple[str, str]]


def check_classes(student: ModelSpec, teacher: ModelSpec) -> None:
    if student.num_classes != teacher.num_classes:
        raise ValueError(
            f"the student has {student.num_classes} classes and the teacher {teacher.num_classes}: logits are compared "
            "class by class, so both must predict the same ones (teacher.class_map maps the teacher's)"
        )


def check_weights(**weights: float) -> None:
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        raise ValueError(f"weights are {weights}: none may be negative and one at least must be positive")


def check_pairs(what: str, pairs: Pairs, student: ModelSpec, teacher: ModelSpec) -> None:
    malformed = any(isinstance(pair, str) or len(pair) != 2 for pair in pairs)
    if not pairs or malformed or len({tuple(pair) for pair in pairs}) != len(pairs):
        raise ValueError(f"{what} is {pairs}: expected a list of one or more different (teacher's tap, student's tap)")
    for teacher_tap, student_tap in pairs:
        for side, tap, taps in (("teacher", teacher_tap, teacher.taps), ("student", student_tap, student.taps)):
            if tap not in taps:
                raise unknown_name(f"{side} tap in {what}", tap, taps)


def check_shape(what: str, x: Tensor, channels: int, stride: int, labels: Tensor) -> None:
    """Counts are taken from the labels alone, so a map on another grid than declared would be normalised wrongly."""
    expected = (len(labels), channels, *tap_grid(labels, stride))
    if tuple(x.shape) != expected:
        raise ValueError(
            f"{what} is {tuple(x.shape)}; {channels} channels at stride {stride} on labels {tuple(labels.shape)} "
            f"declare {expected}: correct the network's tap_info or the labels' size"
        )
