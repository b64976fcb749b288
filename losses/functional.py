"""Pure functions from tensors to tensors: every formula that several losses share. Void cells never count.

All of them compute in float32 (float64 if given float64), also under autocast: half precision overflows at logits
and features that a network reaches early in training.
"""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.labels import Grid


def full_precision(x: Tensor) -> torch.autocast:
    """Context in which autocast changes no operation on ``x``'s device."""
    return torch.autocast(x.device.type, enabled=False)


def as_float(x: Tensor) -> Tensor:
    """Half precision -> float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """B C h w -> B C *size, bilinear, cell centres aligned; the same tensor where the size is already right."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def fill_void(x: Tensor, valid: Tensor, value: float = 0.0) -> Tensor:
    """B C h w -> B C h w: ``value``, without gradient, where ``valid`` (B h w bool) is False.

    Value and gradient preserve channels_last, which ``masked_fill`` does not.
    """
    return torch.where(valid[:, None], x, value)


def channel_mean(x: Tensor) -> Tensor:
    """B C h w -> B h w: the mean over channels. Its gradient preserves channels_last."""
    return x.movedim(1, -1).mean(-1)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` where ``valid`` (both of one shape); exactly 0, with gradient 0, where nothing is valid."""
    return values.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def tile_elements(x: Tensor) -> int:
    """Number of elements to compute at a time, where the whole is too large to hold.

    On a CPU each core's part fits its cache; on a GPU a kernel takes longer than its launch.
    """
    return 2**19 * torch.get_num_threads() if x.device.type == "cpu" else 2**24


class Band(NamedTuple):
    """Part of an axis after ``resize``: its cells are weights @ sources."""

    cells: slice
    sources: slice
    weights: Tensor  # cells x sources


@lru_cache(maxsize=64)
def _bands(n: int, size: int, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Band, ...]:
    """An axis of ``n`` cells, resized to ``size``, in even bands of at most ``length`` cells."""
    weights = resize(torch.eye(n, dtype=dtype)[None, None], (size, n))[0, 0]
    bands = []
    for rows in weights.tensor_split(-(-size // length)):
        sources = rows.any(0).nonzero()
        sources = slice(int(sources[0]), int(sources[-1]) + 1)
        start = bands[-1].cells.stop if bands else 0
        bands.append(Band(slice(start, start + len(rows)), sources, rows[:, sources].to(device)))
    return tuple(bands)


def _tiles(logits: Tensor, labels: Tensor, weights: Tensor) -> Iterator[tuple[Band, Band, Tensor, Tensor, Tensor]]:
    """Log-probabilities at the resolution of the labels, tile after tile.

    Bilinear interpolation is rows @ logits @ columns^T; a band of rows and a band of columns give a tile. These
    products are faster than ``F.interpolate`` on a CPU, and their gradients are summed in a fixed order on a GPU too
    (in TF32 if float32 products are set to it).

    Yields:
        Rows, columns, and of their tile: log-probabilities B K r c, labels B 1 r c (0 where the weight is), weights.
    """
    (B, K, h, w), (H, W) = logits.shape, labels.shape[-2:]
    length = max(1, math.isqrt(tile_elements(logits) // (B * K)))
    axes = (_bands(*axis, length, logits.dtype, logits.device) for axis in ((h, H), (w, W)))
    for rows, columns in itertools.product(*axes):
        tile = rows.weights @ (logits[:, :, rows.sources, columns.sources] @ columns.weights.T)
        y, weight = (x[:, None, rows.cells, columns.cells] for x in (labels, weights))
        yield rows, columns, tile.log_softmax(1), y.long().masked_fill(weight == 0, 0), weight


class _UpsampledCrossEntropy(torch.autograd.Function):
    """``upsampled_cross_entropy``: its gradient is computed with the value, tile by tile, on the coarse grid."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        sums = []
        for rows, columns, log_p, y, weight in _tiles(logits, labels, weights):
            true = log_p.gather(1, y)
            sums.append((true * weight).sum())
            if gradient is not None:
                slope = log_p.exp_().scatter_(1, y, true.expm1()).mul_(weight)  # p, less 1 at the true class
                gradient[:, :, rows.sources, columns.sources] += rows.weights.T @ slope @ columns.weights
        ctx.save_for_backward(gradient)
        return -torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None


def upsampled_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over pixels of the cross-entropy of logits resized bilinearly to the labels, in little memory.

    Resized logits and their gradient (64 times the size of logits at stride 8) would be the largest tensors of a
    training step. Here neither is ever held as a whole.

    Args:
        logits: B K h w, float32 or float64.
        labels: B H W class ids, anything where the weight is 0.
        weights: B H W bool or float, without gradient.
    """
    if logits.shape[-2:] == labels.shape[-2:]:
        losses = F.cross_entropy(logits, labels.long().masked_fill(weights == 0, 0), reduction="none")
        return (losses * weights).sum()
    with full_precision(logits):
        return _UpsampledCrossEntropy.apply(logits if torch.is_grad_enabled() else logits.detach(), labels, weights)


def cross_entropy(logits: Tensor, cells: Grid, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over labelled cells (weighted mean with class weights, as in PyTorch).

    Args:
        logits: B K h w; resized bilinearly to H x W first.
        cells: the labels, B H W.
        class_weights: K, or None for equal weights.

    Raises:
        ValueError: if there are not K class weights.
    """
    if class_weights is not None and len(class_weights) != logits.shape[1]:
        raise ValueError(f"{len(class_weights)} class weights for {logits.shape[1]} classes; give one for each class")
    weights = cells.weights(class_weights)
    count = weights.sum()
    return upsampled_cross_entropy(as_float(logits), cells.ids, weights) / torch.where(count > 0, count, 1)


def hard_pixel_cross_entropy(
    logits: Tensor, cells: Grid, threshold: float, min_kept: float, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy over the pixels that are hard (online hard example mining: Shrivastava et al., CVPR 2016).

    In each image the pixels whose true class has a probability of at most ``threshold`` are kept, and at least the
    hardest ``min_kept`` of its labelled pixels. The result is the mean of the images' means over kept pixels, weighted
    by their number of labelled pixels (or these pixels' class weights). As each image is mined by itself, the result
    does not depend on how a batch is split.

    Args:
        logits: B K h w; resized bilinearly to H x W first.
        cells: the labels, B H W.
        threshold: in (0, 1).
        min_kept: share in (0, 1].
        class_weights: K, or None for equal weights.
    """
    logits, labels, valid = as_float(logits), cells.ids, cells.labelled
    losses = _pixel_losses(logits, labels, valid).flatten(1)
    most = math.ceil(losses.shape[1] * min_kept)
    last = (valid.flatten(1).sum(1, keepdim=True) * min_kept).ceil().long().clamp(1, most) - 1
    bar = losses.topk(most).values.gather(1, last).clamp(max=-math.log(threshold))
    weights = cells.weights(class_weights).flatten(1).to(losses.dtype)
    kept, share = weights * (losses >= bar), weights.sum(1, keepdim=True)
    total, counts = share.sum(), kept.sum(1, keepdim=True)
    kept *= share / (torch.where(counts > 0, counts, 1) * torch.where(total > 0, total, 1))
    return upsampled_cross_entropy(logits, labels, kept.view_as(labels))


@torch.no_grad()
def _pixel_losses(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """B H W: cross-entropy of each pixel as in ``upsampled_cross_entropy``, -inf where it is not valid."""
    losses = logits.new_empty(labels.shape)
    with full_precision(logits):
        for rows, columns, log_p, y, weight in _tiles(logits, labels, valid):
            tile = -log_p.gather(1, y).masked_fill_(~weight, torch.inf)
            losses[:, rows.cells, columns.cells] = tile[:, 0]
    return losses


def unit(x: Tensor) -> Tensor:
    """Rows (last dimension) divided by their L2 norms; a row of zeros stays 0, with a finite gradient."""
    norms = x.norm(dim=-1, keepdim=True)
    return x / norms.where(norms > 0, 1)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) over classes, mean over valid cells (Hinton et al. 2015).

    The factor T^2 keeps the gradient at about the same size at every temperature.

    Args:
        student_logits, teacher_logits: B K h w on one grid.
        valid: B h w bool.
        temperature: T > 0.
    """
    # Before the softmax, not after: a non-finite logit in a cell that is not valid would make the gradient NaN.
    cut = (fill_void(as_float(x), valid).div_(temperature) for x in (student_logits, teacher_logits))
    log_s, log_t = (x.log_softmax(1) for x in cut)
    return temperature**2 * masked_mean((log_t.exp() * (log_t - log_s)).sum(1), valid)


def self_attention_context(x: Tensor, valid: Tensor, temperature: float = 0.2) -> Tensor:
    """Parameter-free self-attention over the valid cells: sum_j softmax_j(q_i . q_j / temperature) x_j.

    q = (x - mean over valid cells) / its length. It gives a CNN's map the global context that a transformer's map has.
    Without the centring and the length, all similarities are nearly equal, and the sum is the mean of the map, the same
    in every cell. The fused kernel never forms the N x N matrix. Under autocast it reads half precision and sums in
    float32.

    Args:
        x: B C h w.
        valid: B h w bool: the cells that are read; all of them in an image without any.
        temperature: larger spreads the attention over more cells.

    Returns:
        B C h w.
    """
    tokens, read = x.flatten(2).transpose(1, 2), valid.flatten(1)  # B N C, B N
    read = read | ~read.any(1, keepdim=True)
    with full_precision(x):
        values = as_float(tokens)
        mean = (values * read[..., None]).sum(1, keepdim=True) / read.sum(1)[:, None, None]
        query = unit(values - mean)
    query = query.to(tokens.dtype)[:, None]  # B 1 N C: one head
    context = F.scaled_dot_product_attention(
        query, query, tokens[:, None], attn_mask=read[:, None, None], scale=1 / temperature
    )
    return context.squeeze(1).transpose(1, 2).reshape(x.shape)


def warp(x: Tensor, offsets: Tensor) -> Tensor:
    """Samples ``x`` bilinearly at each cell's own position plus an offset; the edge is repeated beyond the map.

    Args:
        x: B C h w.
        offsets: B 2 h w, (columns, rows), in cells of the grid: +1 reads the next cell. (D / (w, h) added to a grid
            over [-1, 1], as in the HMKD release, moves half a cell for each unit of D.)

    Returns:
        B C h w. Zero offsets give back ``x`` bit for bit.
    """
    with full_precision(x):
        x, offsets = as_float(x), as_float(offsets)
        h, w = x.shape[-2:]
        centres_x, centres_y = (
            (2 * torch.arange(n, device=x.device, dtype=x.dtype) + 1) / n - 1  # cell centres if align_corners=False
            for n in (w, h)
        )
        base = torch.stack(torch.meshgrid(centres_x, centres_y, indexing="xy"), dim=-1).expand(len(x), h, w, 2)
        step = torch.stack([offsets[:, 0] * (2 / w), offsets[:, 1] * (2 / h)], dim=-1)
        moved = _sample(x, base + step)
        # Rounding moves the centres by about 1e-6 of a cell. Subtracting the sample at zero offset removes this error;
        # it is detached because it depends on rounding alone.
        with torch.no_grad():
            still = _sample(x, base)
        return x.detach() + (moved - still)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        return _sample_by_gathers(x, grid)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sample_by_gathers(x: Tensor, grid: Tensor) -> Tensor:
    """The same as ``F.grid_sample``, but its gradient is summed in a fixed order on a GPU."""
    sizes, corners = (x.shape[-1], x.shape[-2]), []
    for size, place in zip(sizes, ((grid + 1) * grid.new_tensor(sizes) - 1).div(2).unbind(-1), strict=True):
        inside = (place > 0) & (place < size - 1)  # no gradient for a place on or beyond the border
        place = place.where(inside, place.detach().clamp(0, size - 1))
        low = place.detach().floor()
        corners.append(((low.long(), 1 - (place - low)), ((low.long() + 1).clamp(max=size - 1), place - low)))
    total = 0
    for (column, column_weight), (row, row_weight) in itertools.product(*corners):
        cells = (row * sizes[0] + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        total = total + x.flatten(2).gather(2, cells).view(*x.shape[:2], *row.shape[1:]) * (
            row_weight * column_weight
        ).unsqueeze(1)
    return total
