"""Layers that several heads share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; B inputs h w -> B outputs h w on the same grid."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def resize(maps: Tensor, like: Tensor) -> Tensor:
    """B C h w -> B C h' w', bilinear, on the grid of ``like``."""
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm for maps pooled to one cell, which also trains with one image a batch.

    One value has no variance, and PyTorch raises an error. That case is normalised by the running statistics and does
    not update them; every other case is plain BatchNorm.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if maps.numel() == maps.shape[1]:
            return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(maps)


class GlobalContext(nn.Module):
    """The mean feature of each image, projected and repeated over the grid: B inputs h w -> B outputs h w."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), PooledBatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.project(maps.mean((2, 3), keepdim=True)).expand(-1, -1, *maps.shape[-2:])


class RegionAverage(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products; the export of PyTorch's layer is valid for one size only."""

    def __init__(self, bins: int | tuple[int, int]):
        super().__init__()
        self.bins = (bins, bins) if isinstance(bins, int) else bins

    def forward(self, maps: Tensor) -> Tensor:
        """B C h w -> B C rows columns."""
        rows, columns = (_averages(n, length, maps) for n, length in zip(self.bins, maps.shape[-2:], strict=True))
        return rows @ maps @ columns.T


def _averages(bins: int, length: int, like: Tensor) -> Tensor:
    """bins x length: row i averages the positions floor(i length / bins) .. ceil((i + 1) length / bins) - 1."""
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    start, end = i * length // bins, ((i + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)
    inside = (position >= start) & (position < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


class RegionPool(nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d`` that is deterministic on a GPU too, with ``torch.use_deterministic_algorithms``."""

    def forward(self, maps: Tensor) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(maps)
        with torch.autocast(maps.device.type, enabled=False):
            return RegionAverage(self.output_size)(maps.float()).to(maps.dtype)
