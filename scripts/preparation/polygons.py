"""Polygons -> pixels. A pixel belongs to a polygon if its centre is inside it (OpenCV's fillPoly adds the border)."""

from typing import Any

import numpy as np

MARGIN = 0.5  # pixels that a corner may lie outside the image, where annotation tools round


def as_corners(numbers: Any) -> np.ndarray:
    """Numbers x, y, x, y, ... or points (x, y) -> N x 2 float64, without a last corner that repeats the first.

    Raises:
        ValueError: they are no polygon.
    """
    try:
        corners = np.asarray(numbers, np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"its corners are no pairs of numbers ({error})") from error
    if len(corners) > 1 and (corners[0] == corners[-1]).all():
        corners = corners[:-1]
    if len(corners) < 3:
        raise ValueError(f"it has {len(corners)} corners; expected three or more")
    if not np.isfinite(corners).all():
        raise ValueError("a corner is not finite")
    return corners


def rasterize(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """N x 2 corners, in pixels from the image's top left corner -> H W bool: the pixels of the polygon.

    Raises:
        ValueError: a corner lies outside the image by more than half a pixel, or the polygon crosses itself.
    """
    height, width = size
    outside = ((corners < -MARGIN) | (corners > np.array([width, height]) + MARGIN)).any(1)
    if outside.any():
        x, y = corners[outside][0]
        raise ValueError(f"its corner ({x:g}, {y:g}) is outside the image of {width} x {height} (W x H)")
    corners = corners.clip(0, [width, height])
    if (where := find_crossing(corners)) is not None:
        raise ValueError(f"it crosses itself near ({where[0]:.1f}, {where[1]:.1f})")
    changes = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # The rows whose centre the edge passes, and the first column to the right of it.
        rows = np.arange(np.ceil(min(y0, y1) - 0.5), np.ceil(max(y0, y1) - 0.5), dtype=int)
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            changes[rows, np.ceil(x - 0.5).astype(int).clip(0, width)] += 1
    return changes.cumsum(1)[:, :width] % 2 == 1


def find_crossing(corners: np.ndarray) -> np.ndarray | None:
    """A point (x, y) where two edges of a polygon cross; edges that only touch do not cross."""
    starts, ends = corners, np.roll(corners, -1, axis=0)
    for a, b, later in zip(starts, ends, range(2, len(corners)), strict=False):
        c, d = starts[later:], ends[later:]
        crossing = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
        if crossing.any():
            c, d = c[crossing][0], d[crossing][0]
            return a + (b - a) * _side(c, d, a) / (_side(c, d, a) - _side(c, d, b))
    return None


def _side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Positive on one side of the line from start to end, negative on the other."""
    along, to = end - start, point - start
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
