"""The contract of a distillation method: named scalar terms, their weights, and what each is a mean over."""

import torch
from torch import Tensor, nn

from models.base import SegOutput


class Method(nn.Module):
    """One distillation method. It owns its projectors; it owns neither network.

    Attributes:
        weights: weight of each term in the total. Its keys are exactly the keys of what ``forward`` returns:
            a term of weight 0 is never built.
    """

    weights: dict[str, float]

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms for one local batch.

        Args:
            student: the student's output; gradients flow into it.
            teacher: the teacher's output; no gradient ever flows into it.
            labels: B H W uint8 or int64 class ids, 255 where void.

        Returns:
            float32 scalars, each a mean over the elements that ``counts`` tells. A mean over nothing is exactly 0.
        """
        raise NotImplementedError

    def counts(self, labels: Tensor) -> dict[str, Tensor]:
        """Number of elements (float32 scalars) that each term is a mean over for these labels.

        The training loop sums them over ranks and accumulated batches and scales each local mean by
        count / global count, so that the same images give the same loss however they are split.
        Here: the batch size, right for every term whose samples all weigh the same.
        """
        batch = torch.tensor(float(len(labels)), device=labels.device)
        return dict.fromkeys(self.weights, batch)
