"""Checks that methods share: of their arguments, before anything is built, and of the maps that they compare."""

from collections.abc import Sequence

from torch import Tensor

from losses.labels import Labels
from models.base import ModelSpec, Tap
from utils.names import unknown_name

Pairs = Sequence[tuple[str, str]]


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


def check_logits(
    method: object, student: ModelSpec, teacher: ModelSpec, instead: str, why: str = "compares logits"
) -> None:
    """Refuses a teacher whose logits are absent or of other classes.

    Args:
        method: the method that needs them; the error names its class.
        instead: what the user can do without such a teacher.
        why: what the method does with them.
    """
    name, K, found = type(method).__name__, student.num_classes, teacher.num_classes
    if found is None:
        raise ValueError(f"{name} {why}, and the teacher gives none: {instead}")
    if found != K:
        raise ValueError(
            f"{name} {why} class by class, and the student has {K} classes and the teacher {found}: map the teacher's "
            f"classes with teacher.class_map, or {instead}"
        )


def check_maps(student: Tensor, teacher: Tensor, taps: tuple[Tap, Tap], labels: Labels, what: str = "map") -> None:
    """Refuses a student's map of another shape than declared, and a teacher's of other channels or batch.

    Counts are taken from the labels on the student's declared grid, so its map must have it. The teacher's map is
    resized to that grid and may have any.

    Args:
        student, teacher: B C_s h w and B C_t h' w'.
        taps: the student's and the teacher's, as declared.
    """
    (channels, stride), (teacher_channels, _) = taps
    expected = (len(labels), channels, *labels.size(stride))
    if tuple(student.shape) != expected:
        raise ValueError(
            f"the student's {what} is {tuple(student.shape)}; expected {expected}, {channels} channels at stride "
            f"{stride} on labels {tuple(labels.ids.shape)}: correct the network's tap_info or the labels' size"
        )
    if teacher.ndim != 4 or tuple(teacher.shape[:2]) != (len(labels), teacher_channels):
        raise ValueError(
            f"the teacher's {what} is {tuple(teacher.shape)}; expected {len(labels)} x {teacher_channels} x h x w: "
            "correct the network's tap_info or the batch"
        )
