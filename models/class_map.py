"""A teacher that was trained on other classes than its student: its predictions in the student's classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import ModelSpec, Normalization, SegModel, SegOutput, Tap


class MappedModel(nn.Module):
    """A network whose classes are merged: the probability of a new class is the sum over the classes that map to it.

    In logits, z'_k = log sum over j -> k of exp z_j. A class that maps to None is removed: the probabilities of the
    others grow in proportion to themselves. The taps stay as they are.

    Args:
        class_map: the new class of each of its classes, or None to remove it.

    Raises:
        ValueError: the number of entries is not the number of classes, an entry is not a new class, or no class maps to
            a new class (its teacher would say that the class never occurs).
    """

    def __init__(self, model: SegModel, class_map: Sequence[int | None], num_classes: int):
        super().__init__()
        if len(class_map) != model.num_classes:
            raise ValueError(
                f"class_map has {len(class_map)} entries; expected one for each of {model.num_classes} classes"
            )
        wrong = [target for target in class_map if target is not None and not 0 <= target < num_classes]
        if wrong:
            raise ValueError(f"class_map has the entries {wrong}; expected None or 0..{num_classes - 1}")
        missing = sorted(set(range(num_classes)) - set(class_map))
        if missing:
            raise ValueError(f"class_map maps no class of the network to the classes {missing}")
        self.model = model
        self.num_classes = num_classes
        self.sources = tuple(
            tuple(old for old, new in enumerate(class_map) if new == target) for target in range(num_classes)
        )

    @property
    def tap_info(self) -> dict[str, Tap]:
        return self.model.tap_info

    @property
    def normalization(self) -> Normalization:
        return self.model.normalization

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec._replace(num_classes=self.num_classes)

    def forward(self, images: Tensor) -> SegOutput:
        output = self.model(images)
        logits = output.logits.float()  # a sum of exponentials in half precision loses the small ones
        merged = [logits[:, old].logsumexp(1) if len(old) > 1 else logits[:, old[0]] for old in self.sources]
        return output._replace(logits=torch.stack(merged, dim=1))
