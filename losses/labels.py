"""The labels of a batch on any grid, each grid computed once."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.names import OUTSIDE, VOID

Pixels = Literal["labelled", "inside"]  # the pixels that a term compares: with a class, or all of the image's


class Grid:
    """The labels of the cells of one grid.

    Args:
        ids: B ... uint8: a class id, ``VOID`` (inside the image, no class) or ``OUTSIDE`` (padding).
    """

    def __init__(self, ids: Tensor):
        self.ids = ids
        self._counts: dict[Pixels, Tensor] = {}

    @cached_property
    def labelled(self) -> Tensor:
        """Bool, in the shape of ``ids``: cells with a class."""
        return self.ids < OUTSIDE  # and VOID is larger still

    @cached_property
    def inside(self) -> Tensor:
        """Bool, in the shape of ``ids``: cells inside the image, with or without a class."""
        return self.ids != OUTSIDE

    def mask(self, pixels: Pixels) -> Tensor:
        """``labelled`` or ``inside``."""
        return self.inside if pixels == "inside" else self.labelled

    def count(self, pixels: Pixels) -> Tensor:
        """float32 scalar: number of such cells."""
        if pixels not in self._counts:
            self._counts[pixels] = self.mask(pixels).sum().float()
        return self._counts[pixels]

    def count_images(self, pixels: Pixels) -> Tensor:
        """float32 scalar: number of images with such a cell."""
        return self.mask(pixels).flatten(1).any(1).sum().float()

    def weights(self, class_weights: Tensor | None = None) -> Tensor:
        """In the shape of ``ids``: ``labelled``, or with class weights (K) the weight of the cell's class, else 0."""
        if class_weights is None:
            return self.labelled
        return class_weights[self.ids.masked_fill(~self.labelled, 0).int()] * self.labelled


class Labels:
    """The labels of one micro-batch, made once and read by every term.

    Args:
        ids: B H W uint8: class ids 0..253, ``VOID`` (255) inside the image without a class, ``OUTSIDE`` (254) padding.

    Raises:
        ValueError: if ``ids`` is not B H W uint8.
    """

    def __init__(self, ids: Tensor):
        if ids.ndim != 3 or ids.dtype != torch.uint8:
            raise ValueError(
                f"labels are {tuple(ids.shape)} {ids.dtype}; expected B x H x W uint8: class ids, {VOID} where a pixel "
                f"has no class, {OUTSIDE} where it is padding"
            )
        self.ids = ids
        self._grids: dict[tuple[int, ...], Grid] = {}

    def __len__(self) -> int:
        """B."""
        return len(self.ids)

    def size(self, stride: float) -> tuple[int, int]:
        """Grid of a map of this stride: ceil(H / stride), ceil(W / stride).

        A network that sees the images resized may have a fractional stride: 8 / 0.75.
        """
        H, W = (math.ceil(round(side / stride, 6)) for side in self.ids.shape[-2:])  # 64 / (8 / .75) is 6, not more
        return H, W

    def at(self, stride: float) -> Grid:
        """The labels on the grid of this stride, B h w; the pixels themselves at stride 1.

        Cell (i, j) takes the label at its centre: pixel (floor((i + .5) H / h), floor((j + .5) W / w)). It is computed
        in integers, so it is the same on every device.
        """
        return self.on(self.size(stride))

    def on(self, size: tuple[int, int]) -> Grid:
        """``at`` for a grid of h x w cells."""
        return self._once(size, lambda: self._shrink(size))

    def patches(self, stride: float, side: int) -> Grid:
        """The labels of the P x P patches of the grid of this stride, padded with ``OUTSIDE``: B n P^2."""
        h, w = self.size(stride)

        def cut() -> Tensor:
            cells = F.pad(self.at(stride).ids, (0, -w % side, 0, -h % side), value=OUTSIDE)
            return F.unfold(cells[:, None].float(), side, stride=side).transpose(1, 2).to(torch.uint8)

        return self._once((h, w, side), cut)

    def _once(self, key: tuple[int, ...], make: Callable[[], Tensor]) -> Grid:
        if key not in self._grids:
            self._grids[key] = Grid(make())
        return self._grids[key]

    def _shrink(self, size: tuple[int, int]) -> Tensor:
        full = tuple(self.ids.shape[-2:])
        if size == full:
            return self.ids
        rows, columns = (
            (2 * torch.arange(n, device=self.ids.device) + 1) * side // (2 * n)
            for n, side in zip(size, full, strict=True)
        )
        return self.ids[:, rows[:, None], columns]


def majority_labels(patches: Grid, num_classes: int) -> Tensor:
    """B n P^2 -> B n uint8: each patch's most frequent class id, ``VOID`` where it has no labelled cell."""
    labelled = patches.labelled
    votes = torch.zeros(*labelled.shape[:2], num_classes, device=labelled.device)
    votes.scatter_add_(-1, patches.ids.long().masked_fill(~labelled, 0), labelled.float())
    return votes.argmax(-1).masked_fill(~labelled.any(-1), VOID).to(torch.uint8)


def pool_valid(valid: Tensor, p: int) -> Tensor:
    """B h w bool -> B ceil(h / p) ceil(w / p): whether any of the p x p cells is valid."""
    return F.max_pool2d(valid[:, None].float(), p, ceil_mode=True)[:, 0] > 0
