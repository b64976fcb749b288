"""The labels on any grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.names import VOID


def tap_grid(labels: Tensor, stride: int) -> tuple[int, int]:
    """Grid of a tap of this stride on images of the size of ``labels`` (B H W): ceil(H / stride), ceil(W / stride)."""
    H, W = labels.shape[-2:]
    return -(-H // stride), -(-W // stride)


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """B H W -> B h w: cell (i, j) takes the label at its centre: pixel
    (floor((i + .5) H / h), floor((j + .5) W / w)).

    Integer arithmetic, so the rule is the same on every device and wherever it is applied.
    """
    rows, columns = (
        (2 * torch.arange(n, device=labels.device) + 1) * full // (2 * n)
        for n, full in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def valid_cells(labels: Tensor, size: tuple[int, int], ignore_index: int = VOID) -> Tensor:
    """B h w bool: cells of the grid whose label, by ``shrink_labels``, is not void."""
    return shrink_labels(labels, size) != ignore_index


def pixel_weights(labels: Tensor, ignore_index: int = VOID, class_weights: Tensor | None = None) -> Tensor:
    """B H W: False where void and True elsewhere; with class weights (K), 0 and the weight of the pixel's class."""
    valid = labels != ignore_index
    return valid if class_weights is None else class_weights[labels.masked_fill(~valid, 0).int()] * valid


def count_valid(labels: Tensor, ignore_index: int = VOID, class_weights: Tensor | None = None) -> Tensor:
    """float32 scalar: labels that are not void, each counted as its class's weight where weights (K) are given."""
    return pixel_weights(labels, ignore_index, class_weights).sum().float()


def patch_labels(labels: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """B H W -> B n P^2: labels of the cells of each P x P patch of the grid ``size``, which is padded with void."""
    h, w = size
    cells = F.pad(shrink_labels(labels, size), (0, -w % patch, 0, -h % patch), value=VOID)
    return F.unfold(cells[:, None].float(), patch, stride=patch).transpose(1, 2).to(labels.dtype)


def majority_labels(patches: Tensor, num_classes: int) -> Tensor:
    """B n P^2 labels -> B n int64: each patch's most frequent valid label, void where it has none."""
    valid = patches != VOID
    votes = torch.zeros(*patches.shape[:2], num_classes, device=patches.device)
    votes.scatter_add_(-1, patches.long().masked_fill(~valid, 0), valid.float())
    return votes.argmax(-1).masked_fill(~valid.any(-1), VOID)


def pool_valid(valid: Tensor, p: int) -> Tensor:
    """B h w bool -> B ceil(h / p) ceil(w / p): whether any of the p x p cells is valid."""
    return F.max_pool2d(valid[:, None].float(), p, ceil_mode=True)[:, 0] > 0
