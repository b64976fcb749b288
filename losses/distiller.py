"""What is trained, in one module: the student, its task loss and the distillation method."""

from torch import Tensor, nn

from losses.base import Method
from losses.labels import Labels
from losses.task import TaskLoss
from models.base import SegModel, SegOutput


class Distiller(nn.Module):
    """The only module that DistributedDataParallel wraps. The teacher stays outside: no gradient, not in checkpoints.

    Without a method the student is trained alone.

    Raises:
        ValueError: if the task loss and the student disagree on an auxiliary head, or two terms share a name.
    """

    def __init__(self, student: SegModel, task: TaskLoss, method: Method | None = None):
        super().__init__()
        if (student.aux_head is not None) != ("aux" in task.weights):
            has = "an" if student.aux_head is not None else "no"
            raise ValueError(
                f"the student has {has} auxiliary head but the auxiliary weight is {task.weights.get('aux', 0.0)}: "
                "an auxiliary head and a positive weight go together"
            )
        if method is not None and (shared := task.weights.keys() & method.weights.keys()):
            raise ValueError(
                f"the method and the task loss both have a term named {sorted(shared)}; rename the method's"
            )
        self.student, self.task, self.method = student, task, method

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the total."""
        return self.task.weights | (self.method.weights if self.method is not None else {})

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """What each term is a mean over for these labels (see ``Method.counts``)."""
        return self.task.counts(labels) | (self.method.counts(labels) if self.method is not None else {})

    def forward(self, images: Tensor, labels: Labels, teacher: SegOutput | None = None) -> dict[str, Tensor]:
        """Unweighted terms: the task's, then the method's.

        Args:
            images: B 3 H W uint8 RGB.
            teacher: the teacher's output on the same images; None if and only if there is no method.

        Raises:
            ValueError: if a method lacks the teacher's output, or a teacher's output lacks a method.
        """
        if (teacher is None) != (self.method is None):
            found = "no teacher output" if teacher is None else "a teacher output"
            raise ValueError(f"{found} was given, and the method is {type(self.method).__name__}: they go together")
        output = self.student(images)
        terms = self.task(output, labels)
        return terms if self.method is None else terms | self.method(output, teacher, labels)
