"""Houses: walls with windows, doors, shops and posters, under flat or pitched roofs. All of it is Building."""

from typing import NamedTuple

import numpy as np

from scripts.street.canvas import ASPHALT, DETAIL_RANGE, GLASS, PAINTS, WALLS, Canvas, Label, pick
from scripts.street.things import person, side_view

FLOOR = 3.1  # metres from one storey to the next
DEPTH = 9.0  # metres from the street wall to the back
LAMPLIGHT = (250, 208, 120)


class _Look(NamedTuple):
    """What the walls of one house share."""

    wall: np.ndarray
    trim: np.ndarray
    bay: float  # metres from window to window
    pane: float  # share of the bay that is window
    glassy: bool
    shop: bool
    bands: bool
    lit: float  # share of lit windows


class _Wall:
    """A wall from ``origin`` (x, y, z), ``length`` metres along (x, z), that paints in its own coordinates."""

    def __init__(self, canvas: Canvas, origin: tuple, along: tuple, length: float, floors: int, shade: float):
        self.canvas, self.origin, self.along, self.shade = canvas, origin, along, shade
        self.length, self.floors, self.height = length, floors, floors * FLOOR

    def fill(self, left, right, bottom, top, colour, rough=0.3, glow=False):
        """Rectangles (metres along and up; numbers or arrays of N), all in one colour."""
        left, right, bottom, top = np.broadcast_arrays(*map(np.atleast_1d, (left, right, bottom, top)))
        s, t = np.stack((left, right, right, left), -1), np.stack((bottom, bottom, top, top), -1)
        x, y, z = self.origin
        points = np.stack((x + s * self.along[0], y + t, z + s * self.along[1]), -1)
        self.canvas.paint(points, np.asarray(colour) * (1 if glow else self.shade), Label.BUILDING, rough, glow)

    def hang(self, figure: list, s: float, t: float, scale: float):
        """Puts a figure on the wall; its label is always Building."""
        x, y, z = self.origin
        origin = (x + s * self.along[0], y + t, z + s * self.along[1])
        self.canvas.place(figure, origin, self.along, scale, Label.BUILDING)


def _windows(wall: _Wall, rng, look: _Look, ground: int):
    bays = max(1, int(wall.length / look.bay))
    pitch = wall.length / bays
    storeys = np.arange(1, wall.floors + 1) * FLOOR
    if look.glassy:  # mirrors the sky: only its place in the street differs from sky
        for t in np.arange(ground * FLOOR, wall.height - 0.1, FLOOR / 2):
            mirrored = wall.canvas.haze * (0.5 + 0.4 * t / wall.height)
            wall.fill(0.1, wall.length - 0.1, t, t + FLOOR / 2, mirrored, 0.1, glow=True)
        edges = np.arange(bays + 1) * pitch
        wall.fill(edges - 0.06, edges + 0.06, 0, wall.height, look.trim)
        wall.fill(0, wall.length, storeys - 0.15, storeys, look.trim)
        return
    s, t = np.meshgrid((np.arange(bays) + 0.5) * pitch, np.arange(ground, wall.floors) * FLOOR + 0.9)
    s, t, half = s.ravel(), t.ravel(), look.pane * pitch / 2
    if s.size:
        wall.fill(s - half - 0.1, s + half + 0.1, t - 0.12, t + 1.65, look.trim)
        wall.fill(s - half, s + half, t, t + 1.55, GLASS * 0.8, 0.1)
        wall.fill(s - half, s + half, t + 0.85, t + 1.55, GLASS * 1.15, 0.1)
        lit = rng.random(s.size) < look.lit
        if lit.any():
            wall.fill(s[lit] - half, s[lit] + half, t[lit], t[lit] + 1.55, LAMPLIGHT, 0.1, glow=True)
    if look.bands:
        wall.fill(0, wall.length, storeys - 0.12, storeys + 0.08, look.trim)
    if not look.shop:
        door = pitch * (rng.integers(bays) + 0.5)
        wall.fill(door - 0.65, door + 0.65, 0, 2.35, look.trim)
        wall.fill(door - 0.5, door + 0.5, 0, 2.2, pick(rng, PAINTS))


def _shop(wall: _Wall, rng, look: _Look):
    name = pick(rng, PAINTS)
    wall.fill(0.2, wall.length - 0.2, 0.4, 2.5, GLASS * 0.7, 0.1)
    if look.lit > 0.1:
        wall.fill(0.4, wall.length - 0.4, 0.5, 2.3, LAMPLIGHT, 0.3, glow=True)
    for s in rng.uniform(0.8, wall.length - 0.8, rng.integers(0, 4)):  # dummies in the window
        wall.hang(person(rng), s, 0.4, 1.0)
    posts = np.arange(0.2, wall.length, 2.6)
    wall.fill(posts, posts + 0.14, 0, 2.6, name * 0.8)
    wall.fill(0.1, wall.length - 0.1, 2.5, 3.1, name)
    letters = rng.uniform(0.4, wall.length * 0.3) + np.arange(int(wall.length * rng.uniform(0.4, 0.8))) * 0.5
    wall.fill(letters, letters + rng.uniform(0.15, 0.4, letters.size), 2.66, 2.94, 240 - name * 0.4)


def _poster(wall: _Wall, rng, ground: int):
    """A poster of people or cars."""
    size = rng.uniform(0.9, 1.6)
    s, t = rng.uniform(0.5, wall.length - 4.2), rng.uniform(1.0, 1.6) + ground * FLOOR
    wall.fill(s, s + 2.4 * size, t, t + 1.7 * size, pick(rng, WALLS + PAINTS))
    if rng.random() < 0.5:
        wall.hang(side_view(rng), s + 1.2 * size, t + 0.1, size * 0.48)
    else:
        for spot in (0.6, 1.7):
            wall.hang(person(rng), s + spot * size, t + 0.05, size * 0.9)


def _facade(wall: _Wall, rng, look: _Look):
    wall.fill(0, wall.length, 0, wall.height, look.wall, 0.5)
    if wall.origin[2] > DETAIL_RANGE:
        return
    ground = int(look.shop)
    _windows(wall, rng, look, ground)
    if look.shop:
        _shop(wall, rng, look)
    if rng.random() < 0.35:
        _poster(wall, rng, ground)


def _pitched_roof(canvas: Canvas, rng, side: int, x: float, z0: float, z1: float, height: float, wall: np.ndarray):
    """The ridge runs along the street."""
    slate = pick(rng, [(96, 62, 52), (78, 78, 84), (110, 84, 70)])
    ridge, top = x + side * DEPTH / 2, height + rng.uniform(2.0, 3.5)
    if rng.random() < 0.6:
        near = rng.uniform(z0 + 0.5, z1 - 1)
        for z, shade in ((near + 0.9, 0.7), (near, 1.0)):
            stack = [(ridge - 0.5, height), (ridge + 0.5, height), (ridge + 0.5, top + 1.1), (ridge - 0.5, top + 1.1)]
            canvas.paint([(*corner, z) for corner in stack], wall * shade, Label.BUILDING)
    slope = [(x, height, z0), (x, height, z1), (ridge, top, z1), (ridge, top, z0)]
    canvas.paint(slope, slate * canvas.shade(-side * 0.8, -0.3), Label.BUILDING, rough=0.6)
    gable = [(x, height, z0), (ridge, top, z0), (x + side * DEPTH, height, z0)]
    canvas.paint(gable, wall * canvas.shade(0, -1), Label.BUILDING, rough=0.5)


def building(canvas: Canvas, rng, side: int, x: float, z0: float, z1: float, floors: int, lit: float):
    """A house on one side (-1 left, 1 right) whose street wall stands at ``x`` from ``z0`` to ``z1``, at least 6 m."""
    style = rng.random()
    look = _Look(
        wall=ASPHALT + rng.normal(0, 14) if style < 0.12 else pick(rng, WALLS),
        trim=pick(rng, [(220, 216, 208), (78, 76, 78), (150, 130, 110)]),
        bay=rng.uniform(1.8, 3.4),
        pane=rng.uniform(0.3, 0.62),
        glassy=style > 0.92,
        shop=rng.random() < 0.4,
        bands=rng.random() < 0.5,
        lit=lit,
    )
    if not look.glassy and rng.random() < 0.65:
        _pitched_roof(canvas, rng, side, x, z0, z1, floors * FLOOR, look.wall)
    end = _Wall(canvas, (x, 0, z0), (side, 0), DEPTH, floors, canvas.shade(0, -1))
    _facade(end, rng, look._replace(shop=False))
    front = _Wall(canvas, (x, 0, z0), (0, 1), z1 - z0, floors, canvas.shade(-side, 0))
    _facade(front, rng, look)
