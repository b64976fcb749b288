"""Small folders of images and masks, as people bring them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (32, 40)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """Noise, which differs from seed to seed."""
    return save(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def halves(left: int = 0, right: int = 1, size: tuple[int, int] = SIZE) -> np.ndarray:
    """H W uint8: one id on the left, another on the right."""
    mask = np.full(size, left, np.uint8)
    mask[:, size[1] // 2 :] = right
    return mask


def masked(root: Path, images: str, labels: str, names: list[str], mask: np.ndarray | None = None) -> Path:
    """Images and masks by patterns with ``{}`` for the name; each image has other pixels."""
    for number, name in enumerate(names):
        image(root / images.format(name), number)
        save(root / labels.format(name), halves() if mask is None else mask)
    return root


def street(path: Path, seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Grass and a grey road with noise. Returns its mask, H W bool: the road."""
    rng = np.random.default_rng(seed)
    road = np.zeros(size, bool)
    road[:, int(rng.integers(8, 24)) : int(rng.integers(32, 56))] = True
    colors = np.where(road[..., None], 128, np.array([30, 140, 40])) + rng.integers(-20, 20, (*size, 3))
    save(path, colors.astype(np.uint8))
    return road
