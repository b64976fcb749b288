"""From a network and images to class maps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

Size = tuple[int, int]
MODES = ("whole", "slide")
LARGEST_SCALE = 8.0  # a larger image does not fit into memory; published protocols use at most 2
TILE = 2**22  # logits in a band of rows: 16 MiB fit into a GPU's cache


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; afterwards every submodule is in the mode that it had before."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # FSDP reuses the tensors that it gathers: those made in inference mode could not be written to outside of it.
        sharded = sharded_part(model) is not None
        with torch.no_grad() if sharded else torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in training:
            module.training = mode


def resize(x: Tensor, size: Size) -> Tensor:
    """Bilinear B C h w -> B C H W in float32, pixel centres aligned, with anti-aliasing where the map shrinks."""
    x = x.float()
    if x.shape[-2:] == size:
        return x
    shrinks = size[0] < x.shape[-2] or size[1] < x.shape[-1]  # elsewhere anti-aliasing changes nothing and is slower
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=shrinks)


def scaled_view(size: Size, scale: float) -> Size:
    """The size of the view of an image at a scale in :func:`predict`: sides rounded, at least 1."""
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return height, width


def scaled_size(size: Size, scale: Fraction) -> Size:
    """The size of an image whose sides are multiplied by ``scale`` and rounded up.

    ceil(ceil(H scale) / s) = ceil(H / (s / scale)) for a whole s: a network of stride s has the grid of stride
    s / scale on the image as it was.
    """
    height, width = (-(-side * scale.numerator // scale.denominator) for side in size)
    return height, width


def row_tiles(logits: Tensor, size: Size) -> Iterator[tuple[slice, Tensor]]:
    """:func:`resize` of B K h w to H x W in bands of rows, so that B K H W is never in memory.

    Yields:
        The rows of a band, and the band: B K rows W float32.
    """
    wide = resize(logits, (min(logits.shape[-2], size[0]), size[1]))  # more rows, if needed, are made below
    batch, classes, coarse, width = wide.shape
    place = ((torch.arange(size[0], device=wide.device) + 0.5) * (coarse / size[0]) - 0.5).clamp(min=0)
    above = place.long()
    below, weight = (above + 1).clamp(max=coarse - 1), (place - above).unsqueeze(1)
    step = max(1, TILE // (batch * classes * width))
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        yield rows, torch.lerp(wide[:, :, above[rows]], wide[:, :, below[rows]], weight[rows])


def class_map(logits: Tensor, size: Size) -> Tensor:
    """B K h w logits or probabilities -> B H W uint8, the argmax after :func:`resize`.

    Raises:
        ValueError: more than 255 classes.
    """
    if logits.shape[1] > 255:
        raise ValueError(f"the network has {logits.shape[1]} classes; expected at most 255: class maps are uint8")
    classes = torch.empty(len(logits), *size, dtype=torch.uint8, device=logits.device)
    for rows, tile in row_tiles(logits, size):
        classes[:, rows] = tile.max(1).indices  # equals argmax, and is several times faster on a CPU
    return classes


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along one axis; the last window is shifted back to end at the border."""
    return [*range(0, length - window, stride), length - window]


def view_logits(
    model: nn.Module, images: Tensor, mode: str = "whole", crop_size: Size | None = None, stride: Size | None = None
) -> Tensor:
    """Logits of B 3 H W images as they are, on the grid of the network (``'whole'``) or of the images (``'slide'``).

    ``'slide'`` averages the logits of all windows that contain a pixel. A window larger than the image is cut to the
    image, never padded. Arguments as of :func:`predict`.

    Raises:
        ValueError: unknown mode, windows that are missing, empty or leave gaps, or a network without logits.
    """

    def logits_of(view: Tensor) -> Tensor:
        logits = model(view).logits
        if logits is None:
            raise ValueError("the network has features and no logits: it predicts no classes and cannot be evaluated")
        return logits

    if mode == "whole":
        return logits_of(images)
    if mode != "slide":
        raise ValueError(f"mode is {mode!r}; expected one of {MODES}")
    if crop_size is None or stride is None:
        raise ValueError(f"mode 'slide' got crop_size={crop_size}, stride={stride}; expected (height, width) for both")
    if not all(1 <= step <= side for step, side in zip(stride, crop_size, strict=True)):
        raise ValueError(f"stride {stride} with crop_size {crop_size}; expected 1 <= stride <= crop_size on both axes")

    height, width = images.shape[-2:]
    window = min(crop_size[0], height), min(crop_size[1], width)
    total, visits = None, torch.zeros(height, width, device=images.device)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            region = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = resize(logits_of(images[region]), window)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[region] += logits
            visits[region] += 1
    return total / visits


def predict(
    model: nn.Module,
    images: Tensor,
    *,
    mode: str = "whole",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: Size | None = None,
    stride: Size | None = None,
) -> Tensor:
    """Class map of each image; the network is in evaluation mode meanwhile.

    With one view (one scale, no flip) it is the argmax of the logits. With several, the logits of each view are resized
    to the size of the images and their softmax probabilities are averaged with equal weights. A view at scale s is the
    image resized to (round(s H), round(s W)) bilinearly, with anti-aliasing where it shrinks.

    Args:
        model: gives ``.logits`` B K h w for B 3 H W images; it and the images are on one device.
        images: 3 H W or B 3 H W RGB uint8.
        mode: ``'whole'`` or ``'slide'``, see :func:`view_logits`.
        scales: factors on the image's sides.
        flip: use each scale a second time, mirrored left to right.
        crop_size: (H, W) of a window in pixels, at every scale; only for ``'slide'``.
        stride: (H, W) between windows in pixels; only for ``'slide'``.

    Returns:
        B H W uint8 (B is 1 for a single image).

    Raises:
        ValueError: there is no scale, a scale is not positive or above ``LARGEST_SCALE``, the mode is unknown, the
            windows are missing, empty or leave gaps, or there are more than 255 classes.
    """
    if not scales or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise ValueError(f"scales are {tuple(scales)}; expected one or more factors above 0, at most {LARGEST_SCALE:g}")
    images = images.unsqueeze(0) if images.ndim == 3 else images
    size = tuple(images.shape[-2:])
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    score = None
    with inference(model):
        for scale, mirrored in views:
            scaled = scaled_view(size, scale)
            view = images if scaled == size else resize(images, scaled)
            logits = view_logits(model, view.flip(-1) if mirrored else view, mode, crop_size, stride)
            if score is None:
                score = logits if len(views) == 1 else torch.zeros(*logits.shape[:2], *size, device=logits.device)
            for rows, tile in row_tiles(logits, size) if len(views) > 1 else ():
                score[:, :, rows] += (tile.flip(-1) if mirrored else tile).softmax(1)
    return class_map(score, size)


def sharded_part(model: nn.Module | None) -> nn.Module | None:
    """The outermost module whose weights the ranks share (FSDP): the model itself or one inside it; None without."""
    modules = () if model is None else model.modules()
    return next((module for module in modules if isinstance(module, FSDPModule)), None)
