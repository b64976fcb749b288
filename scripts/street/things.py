"""What stands in a street between the houses: people, vehicles, signs, poles, fences and trees."""

from typing import NamedTuple

import numpy as np

from scripts.street.canvas import DETAIL_RANGE, GLASS, LEAVES, PAINTS, WALLS, Canvas, Label, box, limb, pick, ring

CLOTHES = PAINTS + WALLS + [(60, 60, 84), (40, 44, 60), (210, 110, 60)]
SKINS = [(226, 180, 150), (190, 140, 106), (122, 84, 62)]
HAIR = [(50, 36, 28)]
TYRE = (30, 30, 32)


class Vehicle(NamedTuple):
    """A vehicle's side view in metres, its nose to the right and its wheels at +-``axle``."""

    outline: list  # from the rear bumper over the roof to the front bumper
    glass: tuple[int, int]  # which stretches of the outline are rear window and windscreen
    windows: list
    axle: float
    width: float


HATCHBACK = Vehicle(
    [(-1.95, 0.28), (-2.0, 0.85), (-1.7, 1.42), (0.15, 1.46), (0.95, 0.95), (1.9, 0.8), (2.0, 0.28)],
    (1, 3),
    [
        [(-1.6, 0.95), (-1.45, 1.34), (-0.6, 1.38), (-0.6, 0.95)],
        [(-0.5, 0.95), (-0.5, 1.38), (0.1, 1.38), (0.75, 0.95)],
    ],
    axle=1.25,
    width=1.7,
)
SALOON = Vehicle(
    [(-2.2, 0.28), (-2.25, 0.9), (-1.5, 0.98), (-0.95, 1.4), (0.3, 1.42), (1.05, 0.95), (2.1, 0.8), (2.2, 0.28)],
    (2, 4),
    [
        [(-1.25, 0.98), (-0.85, 1.32), (-0.3, 1.35), (-0.3, 0.96)],
        [(-0.2, 0.96), (-0.2, 1.35), (0.25, 1.35), (0.85, 0.95)],
    ],
    axle=1.35,
    width=1.75,
)
VAN = Vehicle(
    [(-2.4, 0.3), (-2.4, 1.2), (-2.35, 2.05), (1.0, 2.1), (1.6, 1.25), (2.35, 1.05), (2.4, 0.3)],
    (1, 3),
    [[(0.3, 1.25), (0.3, 1.9), (0.95, 1.9), (1.35, 1.25)]],
    axle=1.5,
    width=1.95,
)
BUS = Vehicle(
    [(-4.5, 0.3), (-4.5, 1.3), (-4.45, 3.0), (4.4, 3.0), (4.5, 1.2), (4.5, 0.3)],
    (1, 3),
    [box(x, x + 1.25, 1.3, 2.4) for x in np.arange(-4.1, 3.5, 1.4)],
    axle=2.9,
    width=2.45,
)
CARS = (HATCHBACK, SALOON, VAN)


def side_view(rng) -> list:
    """A car as a flat figure, about 4 m long."""
    shape = CARS[rng.integers(3)]
    wheels = [(ring((axle, 0.33), 0.34), TYRE) for axle in (-shape.axle, shape.axle)]
    return [(np.array(shape.outline), pick(rng, PAINTS)), *((np.array(w), GLASS) for w in shape.windows), *wheels]


def vehicle(canvas: Canvas, rng, x: float, z: float, heading: float, shape: Vehicle):
    """A vehicle whose middle stands at (x, z); heading 0 drives away from the camera, radians to the right."""
    half, paint = shape.width / 2, pick(rng, PAINTS, 18)
    ahead, right = np.array((np.sin(heading), np.cos(heading))), np.array((np.cos(heading), -np.sin(heading)))

    def stand(across, along, up):
        across, along, up = np.broadcast_arrays(across, along, up)
        return np.stack((x + across * right[0] + along * ahead[0], up, z + across * right[1] + along * ahead[1]), -1)

    seen_from = np.array((-x - canvas.curve * z * z, -z))  # the camera, from the middle of the vehicle
    eye_across, eye_along = seen_from @ right, seen_from @ ahead

    bands, outline = [], shape.outline
    for i, ((s0, y0), (s1, y1)) in enumerate(zip(outline[:-1], outline[1:], strict=True)):
        if (y1 - y0) * (s0 - eye_along) > (s1 - s0) * (y0 - canvas.eye):  # its outside faces the camera
            steep = abs(y1 - y0) / np.hypot(s1 - s0, y1 - y0)
            light = steep * canvas.shade(*(ahead if y1 < y0 else -ahead)) + (1 - steep) * 1.05
            corners = stand((-half, half, half, -half), (s0, s0, s1, s1), (y0, y0, y1, y1))
            bands.append((corners, GLASS * (0.6 + 0.5 * light) if i in shape.glass else paint * light))
    for corners, colour in sorted(bands, key=lambda band: -band[0][:, 2].mean()):
        canvas.paint(corners, colour, Label.CAR, rough=0.08)
    if z > DETAIL_RANGE:
        return
    tail = ((206, 34, 28), (226, 206, 90), outline[1])
    nose = ((246, 240, 214), (232, 232, 228), outline[-2])
    for end, (lamps, plate, (s, y)) in ((-1, tail), (1, nose)):
        if end * eye_along > abs(s):
            for a, b, low, high, colour in (
                (-half, half, 0.28, 0.45, (44, 44, 46)),
                (0.06 - half, 0.4 - half, y - 0.22, y - 0.04, lamps),
                (half - 0.4, half - 0.06, y - 0.22, y - 0.04, lamps),
                (-0.26, 0.26, 0.5, 0.62, plate),
            ):
                corners = stand((a, b, b, a), s + end * 0.02, (low, low, high, high))
                canvas.paint(corners, colour, Label.CAR, rough=0.05, glow=colour is lamps)
    for side in (-1, 1):
        if side * eye_across > half:
            flank = stand(side * half, *np.array(outline).T)
            canvas.paint(flank, paint * canvas.shade(*(side * right)), Label.CAR, rough=0.08)
            for window in shape.windows:
                canvas.paint(stand(side * half, *np.array(window).T), GLASS * 0.9, Label.CAR, rough=0.05)
            for axle in (-shape.axle, shape.axle):
                canvas.paint(stand(side * half, *ring((axle, 0.33), 0.34).T), TYRE, Label.CAR, rough=0.1)
                canvas.paint(stand(side * half, *ring((axle, 0.33), 0.19).T), (136, 138, 142), Label.CAR, rough=0.1)


def person(rng) -> list:
    """A walker of 1.7 m, a figure."""
    top, bottom, skin, hair = pick(rng, CLOTHES), pick(rng, CLOTHES) * 0.8, pick(rng, SKINS), pick(rng, HAIR)
    step, swing = rng.uniform(0.06, 0.32), rng.uniform(0.02, 0.25)
    hem = rng.choice((0.85, 0.8, 0.5))
    waist = 0.16 + (0.85 - hem) / 4
    figure = [
        (limb((-0.05, 0.85), (-step, 0.04), 0.15), bottom * 0.8),
        (limb((0.05, 0.85), (step, 0.04), 0.15), bottom),
        (box(-step - 0.09, -step + 0.11, 0, 0.09), hair),
        (box(step - 0.09, step + 0.11, 0, 0.09), hair),
        (limb((-0.15, 1.4), (-0.2 - swing, 0.85), 0.1), top * 0.75),
        (np.array(((-0.2, 1.46), (0.2, 1.46), (waist, hem), (-waist, hem))), top),
        (np.array(((-0.2, 1.46), (-0.09, 1.46), (-0.07, hem), (-waist, hem))), top * 0.8),
        (limb((0.16, 1.4), (0.2 + swing / 2, 0.85), 0.1), top * 0.9),
        (ring((0, 1.6), 0.13, 8), hair),
        (ring((0.03, 1.57), 0.1, 8), skin),
    ]
    if rng.random() < 0.3:
        figure.append((box(0.16, 0.42, 0.55, 0.85), pick(rng, PAINTS)))
    return figure


def pedestrian(canvas: Canvas, rng, x: float, z: float):
    """Somebody who walks across the view."""
    canvas.place(person(rng), (x, 0, z), (rng.choice((-1, 1)), 0), rng.uniform(0.85, 1.1), Label.PEDESTRIAN)


def cyclist(canvas: Canvas, rng, x: float, z: float, side: int):
    """A rider with the bicycle; what shows between the spokes is Bicyclist too."""
    top, bottom, skin, frame = pick(rng, CLOTHES), pick(rng, CLOTHES) * 0.8, pick(rng, SKINS), pick(rng, PAINTS)
    figure = [(np.array(((-0.52, 0.34), (0.0, 0.3), (0.45, 0.8), (-0.15, 0.8))), None)]
    for hub in (-0.52, 0.52):
        rim = ring((hub, 0.34), 0.33)
        figure.append((rim, None))
        figure += [(limb(a, b, 0.055), TYRE) for a, b in zip(rim, np.roll(rim, -1, 0), strict=True)]
    rear, crank, saddle, steering, front = (-0.52, 0.34), (0.0, 0.3), (-0.15, 0.83), (0.4, 0.78), (0.52, 0.34)
    bars = ((rear, crank), (crank, saddle), (crank, steering), (saddle, steering), (rear, saddle), (front, (0.38, 1.0)))
    figure += [(limb(a, b, 0.05), frame) for a, b in bars]
    pedal = rng.uniform(-0.14, 0.14)
    for swing, shade in ((-pedal, 0.75), (pedal, 1.0)):
        knee, foot = (0.2, 0.66 + swing), (swing / 2, 0.3 + swing)
        figure += [(limb((-0.15, 0.92), knee, 0.15), bottom * shade), (limb(knee, foot, 0.12), bottom * shade)]
    figure += [(limb((-0.17, 0.88), (0.1, 1.4), 0.3), top), (limb((0.08, 1.36), (0.4, 1.04), 0.1), top * 0.8)]
    figure += [(ring((0.18, 1.58), 0.13, 8), pick(rng, PAINTS)), (ring((0.2, 1.55), 0.1, 8), skin)]
    turn = rng.uniform(0.2, 1.2)  # radians between the ride and the view across the street
    canvas.place(figure, (x, 0, z), (-side * np.cos(turn), np.sin(turn)), 1.0, Label.BICYCLIST)


def _board(rng) -> list:
    """A traffic sign, 0.7 to 1 m wide, as a figure about its own centre."""
    red, blue, white, ink = (190, 30, 34), (34, 76, 160), (232, 232, 228), (40, 40, 44)
    kind = rng.integers(6)
    if kind == 0:
        return [(ring((0, 0), 0.36), red), (ring((0, 0), 0.26), white), (box(-0.12, 0.12, -0.05, 0.06), ink)]
    if kind == 1:
        return [(ring((0, 0), 0.35), blue), (limb((0, -0.2), (0, 0.2), 0.1), white)]
    if kind == 2:
        triangle = np.array(((-0.42, -0.3), (0.42, -0.3), (0.0, 0.43)))
        return [(triangle, red), (triangle * 0.62, white), (box(-0.04, 0.04, -0.12, 0.12), ink)]
    if kind == 3:
        return [(ring((0, 0), 0.38, 8), red), (box(-0.22, 0.22, -0.06, 0.06), white)]
    field = ((36, 96, 62), blue, (222, 180, 44), white)[rng.integers(4)]
    text = ink if sum(field) > 350 else white
    lines = [(box(-0.42, rng.uniform(0.0, 0.42), y, y + 0.09), text) for y in (-0.24, -0.06, 0.12)]
    return [(box(-0.52, 0.52, -0.36, 0.34), field), *lines]


def signpost(canvas: Canvas, rng, x: float, z: float, lights: bool):
    """Traffic lights or a traffic sign: the post is Pole, what it carries is SignSymbol."""
    height, colour = rng.uniform(2.2, 3.0), pick(rng, [(112, 114, 116), (58, 60, 62)])
    canvas.place([(limb((0, 0), (0, height + 0.3), 0.08), colour)], (x, 0, z), label=Label.POLE)
    if not lights:
        canvas.place(_board(rng), (x, height, z), scale=rng.uniform(0.9, 1.6), label=Label.SIGN)
        return
    canvas.place([(box(-0.19, 0.19, height - 0.5, height + 0.5), (26, 28, 28))], (x, 0, z), label=Label.SIGN)
    colours = np.array(((236, 50, 36), (240, 170, 40), (60, 220, 130))) * 0.22
    colours[rng.integers(3)] /= 0.22
    centres = np.array([(x, height + rise, z) for rise in (0.3, 0.0, -0.3)])
    canvas.discs(centres, np.full(3, 0.11), colours, Label.SIGN, rough=0.0, glow=True)


def lamp(canvas: Canvas, rng, side: int, x: float, z: float, lit: bool):
    """A street lamp that leans over the road."""
    height, colour = rng.uniform(5.5, 8.5), pick(rng, [(96, 98, 100), (58, 62, 62), (140, 142, 140)])
    tip = (-side * 1.3, height + 0.25)
    head = (tip[0] - side * 0.5, tip[1])
    mast = [(limb((0, 0), (0, height), 0.11), colour), (limb((0, height), tip, 0.08), colour)]
    mast += [(limb(tip, head, 0.16), colour * 0.7), (box(-0.1, 0.1, 0, 1.0), colour * 0.85)]
    canvas.place(mast, (x, 0, z), label=Label.POLE)
    if lit:
        bulb = np.array([(x + head[0] + side * 0.25, tip[1] - 0.08, z)])
        canvas.discs(bulb, [0.22], [(255, 226, 160)], rough=0.0, glow=True)


def bollards(canvas: Canvas, rng, x: float, z: float, count: int):
    """A row of bollards along the kerb, all Pole."""
    colour = pick(rng, [(44, 46, 50), (150, 146, 140)])
    post = [(box(-0.08, 0.08, 0, 0.95), colour), (box(-0.09, 0.09, 0.72, 0.82), (226, 222, 210))]
    for i in reversed(range(count)):
        canvas.place(post, (x, 0, z + 1.6 * i), label=Label.POLE)


def fence(canvas: Canvas, rng, x: float, z0: float, z1: float):
    """Railings, boards or a low wall along the street, all of them Fence."""
    height = rng.uniform(0.9, 1.6)
    kind = rng.choice(("rails", "boards", "wall"), p=(0.5, 0.3, 0.2))
    colour = pick(rng, {"rails": [(40, 42, 46), (196, 196, 192)], "boards": [(142, 108, 74)], "wall": WALLS}[kind])

    def strip(near, far, low, high):
        near, far, low, high = np.broadcast_arrays(*map(np.atleast_1d, (near, far, low, high)))
        up, ahead = np.stack((low, low, high, high), -1), np.stack((near, far, far, near), -1)
        return np.stack((np.full(up.shape, x), up, ahead), -1)

    canvas.paint(strip(z0, z1, 0, height), None if kind == "rails" else colour, Label.FENCE, rough=0.6)
    if kind == "wall":
        canvas.paint(strip(z0, z1, height - 0.12, height), colour * 1.2)
        return
    bars = np.arange(z0, z1, 0.22 if z0 < 15 else 0.6)  # closer bars would be finer than a pixel
    canvas.paint(strip(bars, bars + 0.04, 0, height), colour * (1.0 if kind == "rails" else 0.6))
    rails, posts = np.array((0.12, height - 0.06)), np.arange(z0, z1, 2.4)
    canvas.paint(strip(z0, z1, rails, rails + 0.07), colour * 0.9)
    canvas.paint(strip(posts, posts + 0.1, 0, height + 0.08), colour * 0.8, Label.FENCE)


def hedge(canvas: Canvas, rng, x: float, z0: float, z1: float, height: float):
    """A hedge along the street."""
    leaf, z = pick(rng, LEAVES), np.repeat(np.arange(z1, z0, -0.6), 2)
    canvas.paint([(x, 0, z0), (x, 0, z1), (x, height, z1), (x, height, z0)], leaf * 0.7, Label.TREE, rough=0.9)
    centres = np.stack((np.full(z.shape, x), rng.uniform(0.5, 1.0, z.size) * height, z), -1)
    canvas.discs(
        centres, rng.uniform(0.15, 0.32, z.size), leaf * rng.uniform(0.7, 1.05, (z.size, 1)), Label.TREE, rough=0.9
    )


def tree(canvas: Canvas, rng, x: float, z: float, height: float):
    """A round, tall or bare tree; a bare one keeps a full crown in the labels, as annotators draw it."""
    bark, leaf = pick(rng, [(84, 66, 50), (70, 64, 58)]), pick(rng, LEAVES)
    spread, low = height * rng.uniform(0.2, 0.34), height * rng.uniform(0.2, 0.35)
    middle, half = (low + height) / 2, (height - low) / 2
    figure = [(limb((0, 0), (0, middle), 0.05 * height**0.8), bark)]
    if rng.random() < 0.15:
        crown = ring((0, 0), 1.0, 11) * (spread, half) + (0, middle)
        figure += [(crown, None)]
        for tip in rng.permutation(crown):
            fork = np.array((0.4 * tip[0], low + 0.5 * (tip[1] - low)))
            figure += [(limb((0, low * 0.8), fork, 0.1), bark), (limb(fork, tip, 0.05), bark)]
            twigs = fork + (tip - fork) * rng.uniform(0.4, 1.0, (4, 1)) + rng.normal(0, 0.09 * height, (4, 2))
            figure += [(limb(fork + (tip - fork) * 0.3, twig, 0.03), bark) for twig in twigs]
        canvas.place(figure, (x, 0, z), label=Label.TREE)
        return
    canvas.place(figure, (x, 0, z), label=Label.TREE)
    count = 64 if z < DETAIL_RANGE else 24
    offset = rng.normal(0, 0.5, (count, 2))
    offset /= np.maximum(1, np.hypot(*offset.T))[:, None]
    light = np.clip(
        0.6 + 0.3 * (offset[:, 1] + 0.6 * offset[:, 0] * canvas.sun[0]) + rng.normal(0, 0.12, count), 0.1, 1.3
    )
    order = np.argsort(light)  # the bright side is in front
    offset, light = offset[order], light[order]
    centres = np.stack((x + offset[:, 0] * spread, middle + offset[:, 1] * half, np.full(count, z)), -1)
    radii = spread * rng.uniform(0.15, 0.32, count) * (64 / count) ** 0.5
    canvas.discs(centres, radii, leaf * (0.5 + 0.7 * light[:, None]), Label.TREE, rough=0.9)
