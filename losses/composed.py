"""Several distillation methods at once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
        return self._merge(lambda method: method.targets(student, teacher, labels))

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        return self._merge(lambda method: method(student, teacher, labels))

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        return self._merge(lambda method: method.counts(labels))

    def _merge(self, read: Callable[[Method], dict[str, Any]]) -> dict[str, Any]:
        """What is read of each method, under the names of the terms here; a target need not be a term."""
        return {
            self.names.get((name, term), f"{name}.{term}"): value
            for name, method in self.methods.items()
            for term, value in read(method).items()
        }
