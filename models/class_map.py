"""A teacher of other classes than its student's: its predictions in the student's classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import ModelSpec, Normalization, SegModel, SegOutput, Tap


class MappedModel(nn.Module):
    """A network whose classes are merged: the probability of a class is the sum of those that map to it.

    In logits, z'_k = log sum over j -> k of exp z_j. A class that maps to nothing is left out, and its probability goes
    to the others in proportion. Taps are the network's own.

    Args:
        model: the network.
        class_map: for each of its classes the new class, or None to leave it out.
        num_classes: number of new classes.

    Raises:
        ValueError: there is not one entry for each class, an entry is no new class, or a new class has no old one (no
            student should be taught that a class never occurs).
    """

    def __init__(self, model: SegModel, class_map: Sequence[int | None], num_classes: int):
        super().__init__()
        if len(class_map) != model.num_classes:
            raise ValueError(f"class_map has {len(class_map)} entries for a network of {model.num_classes} classes")
        wrong = [target for target in class_map if target is not None and not 0 <= target < num_classes]
        if wrong:
            raise ValueError(f"class_map names the classes {wrong}; expected None or 0..{num_classes - 1}")
        bereft = sorted(set(range(num_classes)) - set(class_map))
        if bereft:
            raise ValueError(f"class_map gives the classes {bereft} no class of the network")
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
        logits = output.logits.float()  # in half precision, sums of exponentials lose the smaller classes
        merged = [logits[:, olds].logsumexp(1) if len(olds) > 1 else logits[:, olds[0]] for olds in self.sources]
        return output._replace(logits=torch.stack(merged, dim=1))
