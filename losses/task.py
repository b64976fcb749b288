"""The loss on the labels: cross-entropy of the student's logits and of its auxiliary head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.functional import cross_entropy, hard_pixel_cross_entropy
from losses.labels import Labels
from models.base import SegOutput


class TaskLoss(nn.Module):
    """Terms ``'task'`` (weight 1) and, with ``aux_weight`` > 0, ``'aux'``: means over labelled pixels.

    Args:
        aux_weight: weight of the auxiliary head's cross-entropy, 0 for a student without one; .4 is usual (PSPNet,
            Zhao et al., CVPR 2017).
        class_weights: one positive weight for each class, or None.
        ohem: (threshold, min_kept): 'task' is then ``hard_pixel_cross_entropy``; or None for ``cross_entropy``.

    Raises:
        ValueError: if a weight is negative, or a share outside (0, 1].
    """

    def __init__(
        self,
        aux_weight: float = 0.0,
        class_weights: Sequence[float] | None = None,
        ohem: tuple[float, float] | None = None,
    ):
        super().__init__()
        if ohem is not None and not (0 < ohem[0] < 1 and 0 < ohem[1] <= 1):
            raise ValueError(f"ohem is {ohem}; expected a threshold in (0, 1) and a share in (0, 1]")
        self.ohem = ohem
        if aux_weight < 0 or any(weight < 0 for weight in class_weights or ()):
            raise ValueError(f"aux_weight {aux_weight}, class_weights {class_weights}: weights may not be negative")
        self.weights = {"task": 1.0} | ({"aux": float(aux_weight)} if aux_weight else {})
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, output: SegOutput, labels: Labels) -> dict[str, Tensor]:
        """Unweighted terms of the student's output, which it gives in training mode if ``aux_weight`` > 0.

        Raises:
            ValueError: if the auxiliary term is on and the student gives no auxiliary logits.
        """
        pixels = labels.at(1)
        if self.ohem is None:
            task = cross_entropy(output.logits, pixels, self.class_weights)
        else:
            task = hard_pixel_cross_entropy(output.logits, pixels, *self.ohem, self.class_weights)
        terms = {"task": task}
        if "aux" in self.weights:
            if output.aux is None:
                raise ValueError(
                    f"aux_weight is {self.weights['aux']} but the student gave no auxiliary logits: give it an "
                    "auxiliary head, put it in training mode, or set aux_weight to 0"
                )
            terms["aux"] = cross_entropy(output.aux, pixels, self.class_weights)
        return terms

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """What each term is a mean over: labelled pixels, or their total class weight."""
        return dict.fromkeys(self.weights, labels.at(1).weights(self.class_weights).sum().float())
