"""Pictures for people: class maps in colour, panels of predictions, curves. Images are H W 3 uint8 RGB arrays."""

import io
import math
import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.files import write_atomically
from utils.names import OUTSIDE, VOID

Color = tuple[int, int, int]

# Okabe and Ito's palette, told apart under every common colour blindness; its yellow is too pale for a line on white.
CURVE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# White is no class's colour in any data set of this repository.
VOID_COLOR: Color = (255, 255, 255)
ERROR_COLORS: dict[str, Color] = {"correct": (186, 202, 214), "wrong": (213, 94, 0), "void": VOID_COLOR}

# Panels have twice the pixels of their usual width on a page (850), so that they stay sharp on dense screens.
WIDTH = 1700  # pixels of a panel
DPI = 200
GAP = 16  # pixels between and around the pictures of a panel
LINE = 52  # pixels of a line of text
OUTLINE = "0.55"  # grey around pictures and colours, so that white ones have an edge


def colorize(label: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Class map H W (0..K-1, 255 = void) in the colours of a K x 3 palette -> H W 3; void and padding are white.

    Raises:
        ValueError: a class has no colour in the palette.
    """
    unknown = np.setdiff1d(label, [*range(len(palette)), OUTSIDE, VOID])
    if unknown.size:
        raise ValueError(f"classes {unknown.tolist()} have no colour; expected 0..{len(palette) - 1} or {VOID} (void)")
    table = np.full((VOID + 1, 3), VOID_COLOR, np.uint8)
    table[: len(palette)] = palette
    return table[label]


def overlay(image: np.ndarray, label: np.ndarray, palette: Sequence[Color], alpha: float = 0.5) -> np.ndarray:
    """The image H W 3 under the colours of its class map H W; ``alpha`` is the colours' share. Void shows the image."""
    mixed = (1 - alpha) * image + alpha * colorize(label, palette)
    return np.where(np.asarray(label)[..., None] >= OUTSIDE, image, mixed.round()).astype(np.uint8)


def error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Where a class map H W differs from the truth H W, in the colours of ``ERROR_COLORS`` -> H W 3."""
    kind = np.where(label >= OUTSIDE, 2, prediction != label)
    return np.array(list(ERROR_COLORS.values()), np.uint8)[kind.astype(np.uint8)]


def panel(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], legend: dict[str, Color] | None = None, width: int = WIDTH
) -> np.ndarray:
    """One picture of many, in equal columns: rows of pictures, a title above each, and a legend of colours below.

    Args:
        rows: (title, H W 3 image) of each picture, as many in every row. An image is scaled to its column's width and
            keeps its proportions.
        legend: name -> RGB colour, in the order shown.
        width: of the whole, in pixels.
    """
    columns, legend = len(rows[0]), legend or {}
    column = (width - GAP * (columns + 1)) // columns
    heights = [max(round(image.shape[0] * column / image.shape[1]) for _, image in row) for row in rows]
    in_line = max(1, width // (3 * LINE + LINE // 3 * max(map(len, legend), default=0)))  # colours
    height = sum(heights) + (LINE + GAP) * len(rows) + LINE * math.ceil(len(legend) / in_line)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    bottom = height
    for row, tall in zip(rows, heights, strict=True):
        bottom -= LINE + tall
        for i, (title, image) in enumerate(row):
            left = GAP + (column + GAP) * i
            place = (left / width, bottom / height, column / width, tall / height)
            axes = figure.add_axes(place, anchor="N", xticks=[], yticks=[])
            axes.imshow(image, interpolation="antialiased" if image.shape[1] > column else "nearest")
            axes.set_title(title, fontsize=10, parse_math=False)  # dollars would be read as formulas
            axes.spines[:].set(color=OUTLINE, linewidth=0.5)
        bottom -= GAP
    # A space before a name, because a legend leaves out those that begin with "_".
    colors = [Patch(facecolor=np.divide(rgb, 255), edgecolor=OUTLINE, label=f" {name}") for name, rgb in legend.items()]
    below = figure.legend(handles=colors, loc="lower left", ncols=in_line, fontsize=10, handlelength=0.9, frameon=False)
    for text in below.get_texts():
        text.set_parse_math(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def plot_curves(
    curves: dict[str, Sequence[tuple[int, float]]], path: str | os.PathLike, ylabel: str, title: str
) -> None:
    """Lines of (step, value) points, one a name, as a PNG file; a nan value is a gap in its line."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration", ylabel=ylabel)
    styles = [(color, dash) for dash in ("-", "--", ":") for color in CURVE_COLORS]
    for (name, points), (color, dash) in zip(curves.items(), cycle(styles), strict=False):
        steps, values = zip(*points, strict=True) if points else ((), ())
        marker = "o" if len(points) <= 40 else ""  # dots show where it was measured, as long as they stay apart
        axes.plot(steps, values, dash, color=color, linewidth=2, marker=marker, markersize=4, label=name)
    dress_curves(axes, title)
    save_figure(figure, path)


def dress_curves(axes: Axes, title: str) -> None:
    """Title, ticks, grid and legend of curves that were drawn over the time of a training."""
    axes.set_title(title, loc="left", fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlim(left=0)  # where training starts, however late the first point
    axes.grid(axis="y", alpha=0.3)
    # Beside the axes: a legend inside would hide points sooner or later.
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as a PNG file, whole or not at all, without the upper and right lines around its axes."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    _write(path, buffer.getvalue())


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a map H W of ids, uint8 or uint16, or an RGB image H W 3 uint8, whole or not at all; makes the folder.

    Raises:
        ValueError: another shape or dtype, or a path that does not end in .png.
    """
    is_map = image.ndim == 2 and image.dtype in (np.uint8, np.uint16)
    if not (is_map or (image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8)):
        raise ValueError(f"{path}: image is {image.shape} {image.dtype}; expected H x W or H x W x 3, uint8")
    _, data = cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])
    _write(path, data.tobytes())


def _write(path: str | os.PathLike, data: bytes) -> None:
    if Path(path).suffix != ".png":
        raise ValueError(f"{path}: expected a name that ends in .png")
    write_atomically(path, data)
