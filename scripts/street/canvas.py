"""A picture and its labels, painted through a pinhole camera.

The unit is the metre: x to the right, y up from the road, z away from the camera. Flat things (people, signs) are
*figures*: lists of ``(polygon V 2, colour)`` with the feet at the origin; :meth:`Canvas.place` places them.
A colour of None is transparent: only the label is filled (the gaps of a railing).
"""

import math
from enum import IntEnum

import cv2
import numpy as np

Label = IntEnum("Label", "SKY BUILDING POLE ROAD PAVEMENT TREE SIGN FENCE CAR PEDESTRIAN BICYCLIST UNLABELLED", start=0)

SUBPIXEL_BITS = 4  # OpenCV draws with sixteenths of a pixel, so that distant things keep their shape
NEAREST = 1.0  # metres: the least distance; a closer point is moved there, which is outside of the picture
DETAIL_RANGE = 45.0  # metres beyond which windows, plates and twigs are smaller than a pixel

WALLS = [(150, 78, 62), (118, 66, 54), (196, 178, 148), (214, 208, 196), (128, 126, 124), (164, 150, 132), (98, 96, 98)]
WALLS += [(182, 140, 104), (170, 174, 178), (142, 108, 88)]
PAINTS = [(176, 34, 34), (40, 66, 140), (222, 222, 220), (34, 36, 40), (128, 132, 138), (92, 96, 100), (36, 96, 66)]
PAINTS += [(212, 172, 40), (84, 120, 160), (120, 30, 50)]
LEAVES = [(62, 92, 40), (84, 112, 48), (56, 80, 44), (112, 116, 50), (148, 108, 44), (52, 90, 48)]
GLASS = np.array((66, 80, 94))
ASPHALT = np.array((96, 95, 98))


def pick(rng: np.random.Generator, colours: list, spread: float = 12) -> np.ndarray:
    """One of the colours, jittered: brightness by ``spread`` grey levels, each channel by a third of it. 3 floats."""
    jitter = rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
    return np.clip(np.asarray(colours[rng.integers(len(colours))]) + jitter, 4, 250)


def box(left: float, right: float, bottom: float, top: float) -> np.ndarray:
    """An upright rectangle, 4 2."""
    return np.array(((left, bottom), (right, bottom), (right, top), (left, top)), float)


def limb(start: tuple, end: tuple, width: float) -> np.ndarray:
    """A bar from one point to another, 4 2."""
    (x0, y0), (x1, y1) = start, end
    reach = width / 2 / max(math.hypot(x1 - x0, y1 - y0), 1e-6)
    dx, dy = (y0 - y1) * reach, (x1 - x0) * reach
    return np.array(((x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)))


def ring(centre: tuple, radius: float, corners: int = 12) -> np.ndarray:
    """A regular polygon, corners 2."""
    angle = (np.arange(corners) + 0.5) * (2 * np.pi / corners)
    return np.asarray(centre) + radius * np.stack((np.cos(angle), np.sin(angle)), -1)


class Canvas:
    """A picture and its labels; paint from far to near.

    Args:
        size: (h, w) pixels.
        focal: focal length in picture widths.
        centre: (x, y) of the vanishing point, in picture widths and heights.
        eye: height of the camera, metres.
        curve: bend of the street: at z metres everything is shifted by ``curve * z**2`` metres.
        sun: (x, z) horizontal direction towards the sun, unit length.
        ambient: light on a surface turned away from the sun, 0..1.
        light: colour of the light, RGB factors around 1.
        haze: RGB that far things fade into.
        visibility: metres after which 63 % of a thing's colour is lost.

    Attributes:
        paint_layer: h w 4 uint8: RGB, and how strongly texture shows.
        label: h w uint8.
    """

    def __init__(self, size, focal, centre, eye, curve, sun, ambient, light, haze, visibility):
        h, w = size
        self.paint_layer = np.zeros((h, w, 4), np.uint8)
        self.label = np.zeros((h, w), np.uint8)
        self.focal, self.centre, self.eye, self.curve = focal * w, (centre[0] * w, centre[1] * h), eye, curve
        self.sun, self.ambient, self.visibility = sun, ambient, visibility
        self.light, self.haze = np.asarray(light, float), np.asarray(haze, float)

    def project(self, points: np.ndarray) -> np.ndarray:
        """... 3 metres -> ... 2 pixels."""
        z = np.maximum(points[..., 2], NEAREST)
        scale = self.focal / z
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = (points[..., 0] + self.curve * z * z) * scale + self.centre[0]
        pixels[..., 1] = (self.eye - points[..., 1]) * scale + self.centre[1]
        return pixels

    def pixel_corners(self, points: np.ndarray) -> np.ndarray:
        """... 3 metres -> ... 2 int32 in sixteenths of a pixel, as OpenCV draws."""
        return np.rint(self.project(points) * 2**SUBPIXEL_BITS).astype(np.int32)

    def shade(self, normal_x: float, normal_z: float) -> float:
        """Light on an upright surface that faces (normal_x, normal_z), 0..1."""
        return self.ambient + (1 - self.ambient) * max(0.0, normal_x * self.sun[0] + normal_z * self.sun[1])

    def _seen(self, colours, depths, rough: float = 0.25, glow: bool = False) -> list:
        """... 3 RGB at ... metres -> ... 4 as the camera sees it: lit (unless it glows itself), faded into the haze."""
        kept = np.exp(-np.maximum(depths, 0) / self.visibility)[..., None]
        seen = np.empty((*kept.shape[:-1], 4))
        seen[..., :3] = np.asarray(colours) * ((1.0 if glow else self.light) * kept) + self.haze * (1 - kept)
        seen[..., 3:] = 255 * rough * kept
        return np.minimum(seen, 255).tolist()

    def _fill(self, corners: np.ndarray, seen: list[float] | None, label: int | None):
        if seen is not None:
            cv2.fillPoly(self.paint_layer, [corners], seen, cv2.LINE_AA, SUBPIXEL_BITS)
        if label is not None:
            cv2.fillPoly(self.label, [corners], label, cv2.LINE_8, SUBPIXEL_BITS)

    def paint(self, polygons, colour, label: int | None = None, rough: float = 0.25, glow: bool = False):
        """Fills polygons (V 3 or N V 3, metres). A label of None keeps the labels, a colour of None the picture."""
        polygons = np.asarray(polygons, float)
        polygons = polygons[None] if polygons.ndim == 2 else polygons
        seen = None if colour is None else self._seen(colour, polygons[..., 2].mean(), rough, glow)
        for corners in self.pixel_corners(polygons):
            self._fill(corners, seen, label)

    def discs(self, centres: np.ndarray, radii, colours, label: int | None = None, rough=0.25, glow=False):
        """Discs that face the camera: centres N 3 and radii N in metres, colours N 3."""
        spots, seen = self.pixel_corners(centres).tolist(), self._seen(colours, centres[:, 2], rough, glow)
        sizes = np.rint(self.focal * np.asarray(radii) / centres[:, 2] * 2**SUBPIXEL_BITS).astype(int).tolist()
        for spot, size, colour in zip(spots, sizes, seen, strict=True):
            cv2.circle(self.paint_layer, spot, size, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
            if label is not None:
                cv2.circle(self.label, spot, size, label, -1, cv2.LINE_8, SUBPIXEL_BITS)

    def place(self, figure: list, origin, along=(1.0, 0.0), scale: float = 1.0, label: int | None = None):
        """Stands a figure up with its feet at ``origin`` (x, y, z), in the plane that runs along (x, z)."""
        flat = np.concatenate([polygon for polygon, _ in figure]) * scale
        corners = self.pixel_corners(
            np.asarray(origin) + flat[:, :1] * (along[0], 0, along[1]) + flat[:, 1:] * (0, 1, 0)
        )
        colours = [(0, 0, 0) if colour is None else colour for _, colour in figure]
        start = 0
        for (polygon, colour), seen in zip(figure, self._seen(colours, np.full(len(figure), origin[2])), strict=True):
            self._fill(corners[start : start + len(polygon)], None if colour is None else seen, label)
            start += len(polygon)

    def fade_ground(self):
        """Fades everything below the horizon into the haze, by the distance of the ground in each row."""
        rows = np.arange(self.label.shape[0], dtype=np.float32) - self.centre[1]
        depth = self.focal * self.eye / np.maximum(rows, 1e-3)
        kept = np.where(rows > 0, np.exp(-depth / self.visibility), 1).astype(np.float32)[:, None, None]
        self.paint_layer[:] = self.paint_layer * kept + np.append(self.haze, 0).astype(np.float32) * (1 - kept)
