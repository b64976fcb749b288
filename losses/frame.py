"""Feature alignment in a fixed frame of the teacher's features. Nothing on the teacher's side learns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.checks import check_maps
from losses.functional import as_float, channel_mean, fill_void, full_precision, masked_mean, resize
from losses.labels import Labels, Pixels
from models.base import Tap

NEGLIGIBLE = 1e-6  # an axis with less than this share of the largest variance is not compared


class Moments(NamedTuple):
    """Of the cells measured so far, in float64: their number, their sum (C) and the sum of their products (C C)."""

    count: int = 0
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0


class FrameAlignment(nn.Module):
    """Mean squared distance between the projected student map and the teacher's map in a fixed frame.

        y = c Lambda^(-1/4) U^T (f_t - mean),    loss = mean (conv1x1(f_s) - y)^2

    over compared cells and components, on the teacher's grid, to which the projected student map is resized bilinearly.
    mean and (U, Lambda) are the mean and the first principal axes of the teacher's features. They are measured once,
    before training, and never change. Lambda^(-1/4) halves the differences between the logarithms of the variances,
    and c makes the components' mean variance 1, so a student that knows nothing has the loss 1. A target that does not
    learn can neither collapse nor run away from the student (compare ``losses.alignment.FeatureAlignment``).

    Args:
        components: number of principal axes, at most; the teacher's channels where it has fewer.
    """

    def __init__(self, student: Tap, teacher: Tap, components: int = 64):
        super().__init__()
        self.student, self.teacher = student, teacher
        count = min(components, teacher.channels)
        self.project = nn.Conv2d(student.channels, count, 1)
        # nan, so that a frame that was never measured cannot go unnoticed.
        self.register_buffer("mean", torch.full((teacher.channels,), torch.nan))
        self.register_buffer("axes", torch.full((count, teacher.channels), torch.nan))

    @torch.no_grad()
    def measure(self, teacher: Tensor, labels: Labels, moments: Moments) -> Moments:
        """``moments`` and those of another teacher's map, B C_t h w: of all its cells inside the images."""
        f = self._on_grid(teacher, labels).movedim(1, -1)[labels.at(self.teacher.stride).inside].double()
        count, total, products = moments
        return Moments(count + len(f), total + f.sum(0), products + f.T @ f)

    @torch.no_grad()
    def fix(self, moments: Moments) -> None:
        """Sets the frame.

        Raises:
            ValueError: the features do not vary.
        """
        mean = moments.total / moments.count
        covariance = moments.products / moments.count - torch.outer(mean, mean)
        variances, axes = torch.linalg.eigh(covariance.cpu())  # ascending
        variances, axes = variances.flip(0)[: len(self.axes)], axes.flip(1)[:, : len(self.axes)].T
        if not variances[0] > 0:
            raise ValueError("the teacher's features are the same in all cells, so they have no principal axes")
        signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # an axis may point both ways: choose one
        used = variances > NEGLIGIBLE * variances[0]
        scales = torch.where(used, variances, 1) ** -0.25 * used
        scales *= (used.sum() / (variances * scales**2).sum()).sqrt()
        self.mean.copy_(mean)
        self.axes.copy_(signs * axes * scales[:, None])

    def _on_grid(self, x: Tensor, labels: Labels) -> Tensor:
        return resize(as_float(x), labels.size(self.teacher.stride))

    def count(self, labels: Labels, pixels: Pixels = "labelled") -> Tensor:
        """Compared cells of the teacher's tap."""
        return labels.at(self.teacher.stride).count(pixels)

    def forward(
        self, student: Tensor, teacher: Tensor, labels: Labels, pixels: Pixels = "labelled"
    ) -> tuple[Tensor, None]:
        """The loss of B C_s h_s w_s and B C_t h_t w_t (detached), and None: there is no anchor."""
        check_maps(student, teacher, (self.student, self.teacher), labels)
        prediction, target, _ = self.sides(student, teacher, labels, pixels)
        with full_precision(student):
            difference = channel_mean((prediction - target).square())
            return masked_mean(difference, labels.at(self.teacher.stride).mask(pixels)), None

    def sides(
        self, student: Tensor, teacher: Tensor, labels: Labels, pixels: Pixels
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The projected student map, y, and y as the only step on the teacher's side; arguments as of ``forward``."""
        prediction = self.project(fill_void(student, labels.at(self.student.stride).mask(pixels)))
        with full_precision(student):
            f = fill_void(self._on_grid(teacher.detach(), labels), labels.at(self.teacher.stride).mask(pixels))
            target = F.conv2d(f, self.axes[..., None, None], -self.axes @ self.mean)
            return self._on_grid(prediction, labels), target, {"frame": target}
