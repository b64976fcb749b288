"""Procedural street scenes with CamVid's eleven classes: a data set for demonstrations and tests, made from a seed.

The order of the classes is SegNet's for CamVid: Sky, Building, Pole, Road, Pavement, Tree, SignSymbol, Fence, Car,
Pedestrian, Bicyclist; some outlines are void (11). The scenes are hard for the same reasons as real ones: walls,
pavements and roads have similar greys; glass mirrors the sky; posters of people and cars, and dummies in windows, are
Building; a rider differs from a walker only by the bicycle; the gaps of railings and bare branches are Fence or Tree.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from scripts.street import layout
from scripts.street.canvas import Canvas, Label

SMALLEST = 32  # pixels a side; in a smaller picture nothing can be recognised
SPLITS = ("train", "val", "test")
MANIFEST = "synthetic.json"
VERSION = 1  # increase it when the same seed no longer gives the same picture


class Mood(NamedTuple):
    """Weather and hour of a scene."""

    zenith: tuple[int, int, int]
    skyline: tuple[int, int, int]
    light: tuple[float, float, float]  # RGB factors on every surface
    ambient: float  # light in the shade, 0..1
    visibility: float  # metres
    lit: float  # share of lit windows
    glare: float  # strength of the veil around the sun, 0..1
    weight: float  # how often it is drawn


MOODS = (
    Mood((92, 146, 208), (198, 220, 236), (1.05, 1.02, 0.96), 0.55, 400, 0.0, 0.0, 0.27),  # a clear day
    Mood((196, 202, 208), (226, 228, 228), (0.9, 0.92, 0.95), 0.88, 220, 0.03, 0.0, 0.25),  # overcast
    Mood((104, 132, 176), (246, 204, 150), (1.1, 0.92, 0.72), 0.45, 260, 0.05, 0.25, 0.14),  # the golden hour
    Mood((58, 66, 104), (212, 146, 116), (0.6, 0.56, 0.62), 0.75, 220, 0.3, 0.0, 0.1),  # dusk
    Mood((18, 22, 40), (48, 52, 72), (0.36, 0.38, 0.48), 0.85, 160, 0.4, 0.0, 0.08),  # night
    Mood((190, 194, 198), (204, 208, 210), (0.86, 0.88, 0.9), 0.95, 40, 0.08, 0.0, 0.08),  # fog
    Mood((214, 222, 228), (252, 246, 232), (0.78, 0.75, 0.7), 0.5, 180, 0.0, 0.75, 0.08),  # against the sun
)


def _noise(rng, size: tuple[int, int], cells: list[int], gain: float) -> np.ndarray:
    """Smooth noise around 0, h w: a sum over grids of so many cells across, each ``gain`` times as strong as the last.

    The grids do not depend on ``size``, so that a scene looks the same in every size.
    """
    total = np.zeros(size, np.float32)
    for octave, across in enumerate(cells):
        grid = rng.standard_normal((across, across), np.float32)
        total += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_LINEAR) * gain**octave
    return total


def _paint_sky(canvas: Canvas, rng, mood: Mood):
    h, w = canvas.label.shape
    rise = np.clip(1 - np.arange(h, dtype=np.float32) / canvas.centre[1], 0, 1)[:, None, None] ** 0.8
    sky = np.float32(mood.skyline) * (1 - rise) + np.float32(mood.zenith) * rise
    cover = np.clip(_noise(rng, (h, w), [4, 8, 16, 32], 0.6) * 0.35 + rng.uniform(-0.5, 0.45), 0, 1)[..., None]
    cloud = np.clip(np.float32(mood.skyline) * rng.uniform(0.8, 1.15), 0, 255).astype(np.float32)
    canvas.paint_layer[..., :3] = sky + (cloud - sky) * cover
    canvas.label[:] = Label.SKY


def _develop(canvas: Canvas, rng, mood: Mood) -> np.ndarray:
    """From paint to a photograph: texture, glare, exposure and colour cast, blur, sensor noise. h w 3 uint8."""
    h, w = canvas.label.shape
    grain = _noise(rng, (h, w), [24, 80, 200, 400], 0.95)
    rough = canvas.paint_layer[..., 3] * np.float32(0.14 / 255)
    picture = canvas.paint_layer[..., :3] * (1 + rough * grain)[..., None]
    if mood.glare:
        y, x = np.ogrid[:h, :w]
        distance = np.hypot(x / w - rng.uniform(0.1, 0.9), (y / h - rng.uniform(0.0, 0.3)) * 0.75).astype(np.float32)
        veil = np.exp(-distance / np.float32(0.35))[..., None] * np.float32(mood.glare)
        picture += (np.float32((255, 244, 220)) - picture) * veil
    picture *= (rng.uniform(0.75, 1.2) * rng.normal(1, 0.03, 3)).astype(np.float32)
    sigma = rng.choice((0.0, 0.0, 0.5, 1.0)) * h / 360
    if sigma > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    picture += rng.standard_normal((h, w, 3), np.float32) * np.float32(rng.uniform(1, 6))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _leave_borders_void(label: np.ndarray, rng) -> np.ndarray:
    """Makes some outlines void, as annotators do; thin things keep all of their pixels."""
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    broad = np.isin(label, (Label.SKY, Label.BUILDING, Label.ROAD, Label.PAVEMENT, Label.TREE, Label.CAR, Label.FENCE))
    careless = _noise(rng, label.shape, [6, 14], 1.0) > -0.4
    return np.where(edge & broad & careless, np.uint8(Label.UNLABELLED), label)


def render_scene(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Paints one street: a pure function of its arguments, and the same street in every size.

    Returns:
        image h w 3 uint8 RGB, and label h w uint8 with 0..10 for the classes and 11 for void.

    Raises:
        ValueError: a negative seed or a smaller size.
    """
    if seed < 0 or min(size) < SMALLEST:
        raise ValueError(f"seed {seed}, size {size}: a scene needs a seed >= 0 and at least {SMALLEST} pixels a side")
    rng = np.random.default_rng(seed)
    mood = MOODS[rng.choice(len(MOODS), p=[mood.weight for mood in MOODS])]
    bearing = rng.uniform(0, 2 * np.pi)
    canvas = Canvas(
        size,
        focal=rng.uniform(0.75, 1.05),
        centre=(rng.uniform(0.36, 0.64), rng.uniform(0.4, 0.52)),
        eye=rng.uniform(1.4, 1.8),
        curve=rng.normal(0, 0.0015),
        sun=np.array((np.sin(bearing), np.cos(bearing))),
        ambient=mood.ambient,
        light=mood.light,
        haze=mood.skyline,
        visibility=np.inf,
    )
    street = layout.draw_street(rng)
    stands = layout.populate(rng, street, mood.lit)
    _paint_sky(canvas, rng, mood)
    layout.paint_ground(canvas, rng, street)
    layout.paint_shadows(canvas, stands, reach=rng.uniform(0.5, 1.6))
    canvas.visibility = mood.visibility
    canvas.fade_ground()  # row by row, because the road reaches from the camera to the horizon
    layout.paint_backdrop(canvas, rng)
    for stand in stands:
        stand.painter(canvas, rng, *stand.args)
    return _develop(canvas, rng, mood), _leave_borders_void(canvas.label, rng)


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of one picture of a data set: no two splits share one, and none depends on how many there are."""
    return seed * 2**32 + index * len(SPLITS) + SPLITS.index(split)


def write_synthetic(
    out: str | Path, train: int, val: int, test: int = 0, size: tuple[int, int] = (180, 240), seed: int = 0
) -> bool:
    """Writes a data set in CamVid's SegNet layout: ``train/``, ``trainannot/``, ``train.txt`` and so on.

    It is written beside ``out`` and then renamed, so that ``out`` is never incomplete.

    ``out`` may exist if it is empty. More pictures with the same seed begin with the same ones.

    Returns:
        Whether anything was written: False if ``out`` already is this data set.

    Raises:
        ValueError: a count, size or seed is out of range, or ``out`` holds something else.
    """
    out, counts = Path(out).resolve(), {"train": train, "val": val, "test": test}
    if min(train, val) < 1 or test < 0:
        raise ValueError(f"{counts}: expected train >= 1, val >= 1 and test >= 0")
    manifest = {**counts, "size": list(size), "seed": seed, "version": VERSION}
    if _already_made(out, manifest):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.partial-{os.getpid()}")
    draft.mkdir()
    try:
        for split, count in counts.items():
            if count:
                _write_split(draft, split, count, size, seed)
        (draft / MANIFEST).write_text(json.dumps(manifest) + "\n")
        draft.rename(out)
    except BaseException:  # an interrupt, too, leaves nothing behind
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return True


def _already_made(out: Path, manifest: dict) -> bool:
    """Whether ``out`` holds the data set of ``manifest``; ValueError if it holds something else."""
    if out.is_file():
        raise ValueError(f"{out} is a file; expected a folder to create")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / MANIFEST).is_file():
        raise ValueError(f"{out} is not empty and has no {MANIFEST}, so it is not replaced; choose another folder")
    text = (out / MANIFEST).read_text()
    if text != json.dumps(manifest) + "\n":
        raise ValueError(
            f"{out} holds the synthetic dataset {text.strip()}; expected {json.dumps(manifest)}: "
            "delete that folder or choose another"
        )
    return True


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: int):
    (root / split).mkdir()
    (root / f"{split}annot").mkdir()
    lines = []
    for index in tqdm(range(count), split, unit="picture", disable=None):
        image, label = render_scene(scene_seed(seed, split, index), size)
        name = f"{split}_{index:05d}.png"
        lines.append(f"{split}/{name} {split}annot/{name}\n")
        for folder, pixels in ((split, image[..., ::-1]), (f"{split}annot", label)):  # OpenCV writes BGR
            (root / folder / name).write_bytes(cv2.imencode(".png", pixels)[1])
    (root / f"{split}.txt").write_text("".join(lines))
