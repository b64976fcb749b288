"""The places of everything: the street's cross-section, the ground, its markings and shadows, people and vehicles."""

from typing import NamedTuple

import cv2
import numpy as np

from scripts.street import things
from scripts.street.buildings import FLOOR, building
from scripts.street.canvas import ASPHALT, LEAVES, SUBPIXEL_BITS, WALLS, Canvas, Label, pick, ring

FAR = 160.0  # metres at which the ground ends
JUNCTION_WIDTH = 7.0
WHITE = np.array((236, 234, 228))
YELLOW = np.array((214, 174, 56))


class Street(NamedTuple):
    """The cross-section in metres from the camera, each (left, right), and the distance of a side road (or inf)."""

    kerb: tuple[float, float]
    wall: tuple[float, float]
    junction: float

    def sides(self):
        """(side, kerb, wall) of the left (-1) and the right (1)."""
        return zip((-1, 1), self.kerb, self.wall, strict=True)

    def is_clear(self, z0: float, z1: float) -> bool:
        """Whether z0..z1 is outside of the side road."""
        return z1 < self.junction - 0.5 or z0 > self.junction + JUNCTION_WIDTH + 0.5


def draw_street(rng) -> Street:
    """Two lanes, left-hand traffic, the camera in the left one."""
    half, offset = rng.uniform(3.0, 5.0), rng.uniform(0.5, 2.0)
    left, right = offset - half, offset + half
    walls = (left - rng.uniform(1.6, 3.6), right + rng.uniform(1.6, 3.6))
    return Street((left, right), walls, rng.uniform(9, 30) if rng.random() < 0.4 else np.inf)


def _strips(x0, x1, z0, z1, steps: int = 2) -> np.ndarray:
    """Patches of ground from x0 to x1 and z0 to z1 (numbers or arrays of N); with steps they follow the bend. N V 3."""
    x0, x1, z0, z1 = np.broadcast_arrays(*(np.atleast_1d(edge).astype(float) for edge in (x0, x1, z0, z1)))
    z = z0[:, None] * (z1 / z0)[:, None] ** np.linspace(0, 1, steps)
    x = np.concatenate((np.repeat(x0[:, None], steps, 1), np.repeat(x1[:, None], steps, 1)), 1)
    return np.stack((x, np.zeros_like(x), np.concatenate((z, z[:, ::-1]), 1)), -1)


def paint_backdrop(canvas: Canvas, rng):
    """Houses and woods at the horizon."""
    x = -FAR
    while x < FAR:
        width, height, z = rng.uniform(6, 22), rng.uniform(4, 14), FAR - rng.uniform(0, 20)
        if rng.random() < 0.6:
            wall = [(x, 0, z), (x + width, 0, z), (x + width, height, z), (x, height, z)]
            canvas.paint(wall, pick(rng, WALLS) * 0.8, Label.BUILDING)
        else:
            centres = np.stack((rng.uniform(x, x + width, 6), np.full(6, height * 0.4), np.full(6, z)), -1)
            leaves = pick(rng, LEAVES) * rng.uniform(0.55, 0.75, (6, 1))
            canvas.discs(centres, np.full(6, height * 0.45), leaves, Label.TREE, rough=0.6)
        x += width * 0.8


def paint_ground(canvas: Canvas, rng, street: Street):
    """Lawns, pavements, the road and what is painted on it."""
    asphalt = ASPHALT + rng.normal(0, 14) + rng.normal(0, 2.5, 3)
    paving = pick(rng, [(150, 146, 140), (122, 118, 116), (168, 150, 134), (104, 102, 104), asphalt])
    for side, kerb, wall in street.sides():
        yard = (pick(rng, LEAVES) * 1.1, Label.TREE) if rng.random() < 0.6 else (paving * 0.9, Label.PAVEMENT)
        canvas.paint(_strips(wall, wall + side * 400, 1, FAR, 14), *yard, rough=0.8)
        canvas.paint(_strips(kerb, wall, 1, FAR, 14), paving, Label.PAVEMENT, rough=0.4)
        if rng.random() < 0.7:
            joints = 2 * 1.09 ** np.arange(36)
            canvas.paint(_strips(kerb, wall, joints, joints * 1.004 + 0.02), paving * 0.82)
            canvas.paint(_strips((kerb + wall) / 2, (kerb + wall) / 2 + 0.04, 1, 40, 8), paving * 0.82)
    canvas.paint(_strips(*street.kerb, 1, FAR, 14), asphalt, Label.ROAD, rough=0.4)
    kerb_ends = [(1, FAR)]
    if street.junction < FAR:
        canvas.paint(
            _strips(-90, 90, street.junction, street.junction + JUNCTION_WIDTH), asphalt, Label.ROAD, rough=0.4
        )
        kerb_ends = [(1, street.junction), (street.junction + JUNCTION_WIDTH, FAR)]
    _paint_markings(canvas, rng, street, asphalt)
    for side, kerb, _ in street.sides():
        for near, far in kerb_ends:
            canvas.paint(_strips(kerb, kerb + side * 0.16, near, far, 14), paving * 1.15, Label.PAVEMENT)


def _paint_markings(canvas: Canvas, rng, street: Street, asphalt: np.ndarray):
    """Repairs, manholes, lane lines and crossings; the labels below stay."""
    left, right = street.kerb
    centre, white = (left + right) / 2, WHITE * rng.uniform(0.75, 1.0)
    for _ in range(rng.integers(2, 6)):
        x, z = rng.uniform(left, right - 0.8), rng.uniform(3, 25)
        patch = _strips(x, min(right, x + rng.uniform(0.5, 2.5)), z, z + rng.uniform(0.6, 7))
        canvas.paint(patch, asphalt * rng.uniform(0.86, 1.12), rough=0.5)
    for _ in range(rng.integers(0, 3)):
        cover = ring((rng.uniform(left + 0.5, right - 0.5), rng.uniform(4, 18)), 0.34)
        canvas.paint(np.insert(cover, 1, 0, axis=1), asphalt * 0.7, rough=0.6)
    dash, gap = rng.uniform(1.5, 4), rng.uniform(2, 6)
    z = np.arange(rng.uniform(1, 4), 90, dash + gap)
    z = z[(z + dash < street.junction) | (z > street.junction + JUNCTION_WIDTH)]
    if z.size:
        canvas.paint(_strips(centre - 0.07, centre + 0.07, z, z + dash), white, rough=0.5)
    if rng.random() < 0.6:
        colour, end = (white, YELLOW)[rng.integers(2)], min(street.junction, 120)
        for side, kerb, _ in street.sides():
            edges = kerb - side * np.array((0.3, 0.55))
            canvas.paint(_strips(edges, edges - side * 0.1, 1, end, 14), colour, rough=0.5)
    z, kind = min(street.junction - 4, rng.uniform(6, 20)), rng.random()
    if kind < 0.3:  # a zebra crossing
        bars = np.arange(left + 0.4, right - 0.6, 1.1)
        canvas.paint(_strips(bars, bars + 0.55, z, z + 2.8), white, rough=0.5)
    elif kind < 0.5:  # a stop line
        canvas.paint(_strips(left, centre, z, z + 0.35), white, rough=0.5)
    elif kind < 0.7:  # an arrow
        x = (left + centre) / 2
        canvas.paint(_strips(x - 0.1, x + 0.1, z, z + 2.6), white, rough=0.5)
        canvas.paint([(x - 0.45, 0, z + 2.4), (x + 0.45, 0, z + 2.4), (x, 0, z + 4.2)], white, rough=0.5)


def paint_shadows(canvas: Canvas, stands: list["Stand"], reach: float):
    """Darkens the ground behind everything that stands in the sun; a shadow is ``reach`` heights long."""
    light = np.full(canvas.label.shape, 255, np.uint8)
    for stand in stands:
        x, z, half_width, half_depth, height = stand.block
        foot = np.array((x, z)) + np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * (half_width, half_depth)
        hull = cv2.convexHull(np.concatenate((foot, foot - canvas.sun * height * reach)).astype(np.float32))[:, 0]
        corners = canvas.pixel_corners(np.insert(hull, 1, 0, axis=1))
        cv2.fillPoly(light, [corners], round(255 * canvas.ambient), cv2.LINE_AA, SUBPIXEL_BITS)
    blur = canvas.label.shape[0] // 120 * 2 + 1
    light = cv2.blur(light, (blur, blur)).astype(np.float32) / 255
    canvas.paint_layer[..., :3] = canvas.paint_layer[..., :3] * light[..., None]


class Stand(NamedTuple):
    """A thing in the street: the distance of its near end, the function that paints it, and its bounding box."""

    near: float
    painter: object
    args: tuple
    block: tuple  # x, z of its middle, half width, half depth, height: metres


def populate(rng, street: Street, lit: float) -> list[Stand]:
    """Draws all things of a scene at random, sorted from far to near. ``lit`` is the share of lit windows."""
    stands = []
    for side, kerb, wall in street.sides():
        stands += _frontage(rng, street, side, wall, lit)
        stands += _kerbside(rng, street, side, kerb, lit)
        stands += _traffic(rng, street, side, kerb)
        for z in rng.uniform(5, 40, rng.integers(0, 6)):
            stands.append(_walker(rng, sorted((kerb + side * 0.7, wall - side * 0.4)), z))
        if rng.random() < 0.35:
            x, z = kerb - side * rng.uniform(0.5, 1.6), rng.uniform(5, 22)
            stands.append(Stand(z, things.cyclist, (x, z, side), (x, z, 0.3, 0.6, 1.6)))
    if rng.random() < 0.25:
        for z in rng.uniform(8, 25) + rng.uniform(-0.5, 0.5, rng.integers(1, 4)):
            stands.append(_walker(rng, street.kerb, z))
    if street.junction < FAR and rng.random() < 0.5:
        x, z = rng.uniform(-8, 8), street.junction + 2
        stands.append(_vehicle(rng, x, z, np.pi / 2, things.CARS[rng.integers(3)]))
    return sorted(stands, key=lambda stand: -stand.near)


def _walker(rng, between: tuple[float, float], z: float) -> Stand:
    x = rng.uniform(*between)
    return Stand(z, things.pedestrian, (x, z), (x, z, 0.2, 0.12, 1.7))


def _tree(x: float, z: float, height: float) -> Stand:
    return Stand(z, things.tree, (x, z, height), (x, z, 0.2 * height, 0.2 * height, height))


def _vehicle(rng, x: float, z: float, heading: float, shape: things.Vehicle) -> Stand:
    length, half = shape.outline[-1][0], shape.width / 2
    half_width = abs(length * np.sin(heading)) + abs(half * np.cos(heading))
    half_depth = abs(length * np.cos(heading)) + abs(half * np.sin(heading))
    args = (x, z, heading + rng.normal(0, 0.03), shape)
    return Stand(z - half_depth, things.vehicle, args, (x, z, half_width, half_depth, 1.4))


def _frontage(rng, street: Street, side: int, wall: float, lit: float) -> list[Stand]:
    """Houses, or gardens behind a fence or a hedge, up to 95 m."""
    stands, z = [], rng.uniform(-4, 2.5)
    urban, storeys = rng.choice((0.97, 0.8, 0.3)), rng.integers(1, 5)
    while z < 95:
        z0, z1 = z, z + rng.uniform(7, 16)
        z = z1 + rng.choice((0.0, 0.0, 2.0))
        if not street.is_clear(z0, z1):
            continue
        if rng.random() < urban:
            floors = int(np.clip(storeys + rng.integers(-1, 2), 1, 6))
            x = wall + side * rng.choice((0.0, 0.0, 0.6, 1.5))
            block = (x + side * 4.5, (z0 + z1) / 2, 4.5, (z1 - z0) / 2, floors * FLOOR)
            stands.append(Stand(z0, building, (side, x, z0, z1, floors, lit), block))
            continue
        z0, edge = max(z0, 2.0), rng.random()
        if edge < 0.6:
            stands.append(Stand(z0, things.fence, (wall, z0, z1), (wall, (z0 + z1) / 2, 0.1, (z1 - z0) / 2, 1.0)))
        elif edge < 0.8:
            height = rng.uniform(0.8, 2.0)
            block = (wall, (z0 + z1) / 2, 0.2, (z1 - z0) / 2, height)
            stands.append(Stand(z0, things.hedge, (wall, z0, z1, height), block))
        for tree_z in rng.uniform(max(z0, 4), max(z1, 5), rng.integers(1, 4)):
            stands.append(_tree(wall + side * rng.uniform(1.5, 8), tree_z, rng.uniform(4, 11)))
    return stands


def _kerbside(rng, street: Street, side: int, kerb: float, lit: float) -> list[Stand]:
    """Lamps, signs, trees, railings and bollards at the edge of the pavement."""
    stands, x = [], kerb + side * 0.4
    for z in np.arange(rng.uniform(5, 22), 70, rng.uniform(16, 28)):
        stands.append(Stand(z, things.lamp, (side, x, z, lit > 0.2), (x, z, 0.06, 0.05, 7)))
    for z in rng.uniform(5, 32, rng.integers(0, 4)):
        stands.append(Stand(z, things.signpost, (x, z, False), (x, z, 0.1, 0.06, 2.6)))
    if rng.random() < 0.25:
        for z in np.arange(rng.uniform(5, 14), 60, rng.uniform(9, 15)):
            stands.append(_tree(kerb + side * 0.9, z, rng.uniform(4, 7)))
    z, edge = rng.uniform(5, 16), rng.random()
    if edge < 0.35:
        end = z + rng.uniform(4, 9)
        stands.append(Stand(z, things.fence, (x, z, end), (x, (z + end) / 2, 0.03, (end - z) / 2, 0.7)))
    elif edge < 0.5:
        count = rng.integers(3, 7)
        stands.append(Stand(z, things.bollards, (x, z, count), (x, z, 0.08, 0.08, 0.9)))
    stands = [stand for stand in stands if street.is_clear(stand.near, stand.near + 2 * stand.block[3])]
    if street.junction < FAR and rng.random() < 0.6:
        z = street.junction - 0.6
        stands.append(Stand(z, things.signpost, (x, z, True), (x, z, 0.15, 0.1, 3)))
    return stands


def _traffic(rng, street: Street, side: int, kerb: float) -> list[Stand]:
    """A row of parked cars, and what drives in this side's lane."""
    stands = []
    if rng.random() < 0.8:
        for z in np.arange(rng.uniform(6, 18), rng.uniform(30, 70), rng.uniform(5.2, 8)):
            shape = things.CARS[rng.choice(3, p=(0.5, 0.3, 0.2))]
            if rng.random() < 0.75 and street.is_clear(z - 3, z + 3):
                stands.append(_vehicle(rng, kerb - side * 1.1, z, rng.choice((0, np.pi)), shape))
    lane = kerb * 0.42 + sum(street.kerb) * 0.2
    for z in np.cumsum(rng.uniform(9, 30, 4)):
        shape = (*things.CARS, things.BUS)[rng.choice(4, p=(0.45, 0.3, 0.15, 0.1))]
        if rng.random() < 0.55:
            stands.append(_vehicle(rng, lane, z, 0 if side < 0 else np.pi, shape))
    return stands
