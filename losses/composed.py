"""Several distillation methods at once."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from losses.base import Method
from losses.labels import Labels
from models.base import SegOutput


class Composed(Method):
    """The terms of several methods side by side, each with its own weight.

    Args:
        methods: by name; where two methods have a term of the same name, the method's name comes first: ``'kd.logit'``.

    Raises:
        ValueError: no method at all.
    """

    def __init__(self, methods: Mapping[str, Method]):
        super().__init__()
        if not methods:
            raise ValueError("methods is empty: name one distillation method at least")
        self.methods = nn.ModuleDict(methods)
        self.needs_calibration = any(method.needs_calibration for method in methods.values())
        every = [term for method in methods.values() for term in method.weights]
        self.names = {
            (name, term): f"{name}.{term}" if every.count(term) > 1 else term
            for name, method in methods.items()
            for term in method.weights
        }
        self.weights = {full: methods[name].weights[term] for (name, term), full in self.names.items()}

    def calibrate(self, outputs: Callable[[], Iterable[tuple[SegOutput, Labels]]]) -> None:
        for method in self.methods.values():
            method.calibrate(outputs)

    def targets(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, dict[str, Tensor]]:
        return {
            self.names.get((name, term), f"{name}.{term}"): steps
            for name, method in self.methods.items()
            for term, steps in method.targets(student, teacher, labels).items()
        }

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        return {
            self.names[name, term]: value
            for name, method in self.methods.items()
            for term, value in method(student, teacher, labels).items()
        }

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        return {
            self.names[name, term]: count
            for name, method in self.methods.items()
            for term, count in method.counts(labels).items()
        }
