"""Which image sizes a network takes. It is tried on tensors that have a shape and no values, so it costs little."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from models.inference import Size, inference, scaled_view

ENOUGH = 512  # pixels; an image of this height and width is not too small for any network


def error_at(network: nn.Module, size: Size, batch: int = 1) -> str | None:
    """The error of the network, in its present mode, on B 3 H W images; None: it has none. Nothing changes in it."""
    state = {
        name: torch.empty_like(tensor, dtype=torch.float32 if tensor.is_floating_point() else None, device="meta")
        for tensors in (network.named_parameters(), network.named_buffers())
        for name, tensor in tensors
    }
    try:
        with torch.no_grad():
            functional_call(network, state, torch.empty(batch, 3, *size, dtype=torch.uint8, device="meta"))
    except Exception as error:  # each layer has its own
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def smallest_side(network: nn.Module, batch: int = 1) -> int | None:
    """Height and width of the smallest square images that the network takes, in its present mode.

    None: no size is large enough, or the network cannot run on tensors without values.
    """
    if error_at(network, (ENOUGH, ENOUGH), batch) is not None:
        return None
    return 1 + bisect_left(range(1, ENOUGH), True, key=lambda side: error_at(network, (side, side), batch) is None)


def too_small(network: nn.Module, size: Size, scales: Sequence[float], window: Size | None) -> str | None:
    """Why ``models.inference.predict`` fails on an image of this height and width, and what helps.

    ``window`` is its ``crop_size``, None where the image is seen whole. None: the size is not the reason.
    """
    with inference(network):
        for scale in scales:
            view = scaled_view(size, scale)
            seen = view if window is None else (min(view[0], window[0]), min(view[1], window[1]))
            if error_at(network, seen) is None or (side := smallest_side(network)) is None:
                continue
            at_scale = "" if view == size else f", {view[0]} x {view[1]} at scale {scale:g}"
            cut = "" if seen == view else f", in windows of {seen[0]} x {seen[1]}"
            ways = []
            if min(view) < side:
                enough = math.ceil(100 * side / min(size)) / 100
                ways.append(f"leave it out, or evaluate at scales of {enough:g} or more (eval.scales, --scales)")
            if window is not None and min(window) < side:
                ways.append(f"set eval.crop_size=({side}, {side}) or larger")
            return (
                f"the image has {size[0]} x {size[1]} pixels (H x W){at_scale}{cut}; the network needs at least "
                f"{side} x {side}: {'; '.join(ways)}"
            )
    return None


@contextmanager
def size_errors(
    network: nn.Module, name: object, size: Size, scales: Sequence[float], window: Size | None
) -> Iterator[None]:
    """Turns an error of ``predict`` into one that says that this image, called ``name``, is too small, if it is."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        reason = too_small(network, size, scales, window)
        if reason is None:
            raise
        raise ValueError(f"{name}: {reason}") from error
