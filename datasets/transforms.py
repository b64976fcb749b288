"""Training augmentation of an image and its label; only the pixels of the crop are resampled."""

import copy
import math
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from utils.names import OUTSIDE

PADDING = (124, 116, 104)  # ImageNet's mean colour: close to zero once a network has normalised it
CROP_TRIES = 10  # as in mmsegmentation's RandomCrop


class TrainTransform:
    """Random scale, crop, flip and photometric distortion, all drawn from the given generator.

    The result is the same as resizing the whole image by the drawn scale, padding it at the bottom and right to the
    crop size and cutting out the crop, but only the pixels of the crop are read and computed. The image is resampled
    bilinearly without anti-aliasing, as is usual in the field (so keep the scale at 0.5 or more), the label by the
    nearest pixel on the same grid. Padding is the mean colour, and ``OUTSIDE`` in the label.

    Args:
        crop_size: (h, w) of the result, in pixels.
        scale_range: lowest and highest scale, drawn uniformly.
        cat_max_ratio: a crop in which one class covers more than this share of the labelled pixels is drawn again, up
            to 10 times. 1 accepts the first crop.
        flip: mirror left to right with probability 1/2.
        photometric: distort brightness, contrast, saturation and hue; ``'strong'``: as ``distort_strongly``.
        larger: if above 1, the result has a third item: the same crop of the image in a higher resolution, with sides
            of ``larger * crop_size``, rounded up.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale_range: Sequence[float] = (0.5, 2.0),
        cat_max_ratio: float = 1.0,
        flip: bool = True,
        photometric: bool | str = False,
        larger: Fraction | int = 1,
    ):
        self.factors = [1] if larger <= 1 else [1, larger]
        self.crop_size, self.scale_range, self.cat_max_ratio = tuple(crop_size), tuple(scale_range), cat_max_ratio
        self.flip, self.photometric = flip, photometric

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """H W 3 uint8 RGB and H W uint8 -> h w 3, h w (, H' W' 3), contiguous; a function of the generator's state.

        Of the image it reads only ``shape`` and ``[:n]``, the rows down to the last one of the crop.
        """
        scale = rng.uniform(*self.scale_range)
        scaled = tuple(max(1, round(side * scale)) for side in label.shape)
        corner = self._draw_corner(scaled, rng)
        cropped = self._cut_label(label, scaled, corner)
        if self.cat_max_ratio < 1:
            for _ in range(CROP_TRIES):
                if largest_share(cropped) <= self.cat_max_ratio:
                    break
                corner = self._draw_corner(scaled, rng)
                cropped = self._cut_label(label, scaled, corner)
        pictures = self._cut_image(image, label.shape, scaled, corner)
        if self.flip and rng.random() < 0.5:
            pictures, cropped = [cv2.flip(picture, 1) for picture in pictures], cv2.flip(cropped, 1)
        if self.photometric:
            change = distort_strongly if self.photometric == "strong" else distort
            pictures = [change(picture, copy.deepcopy(rng)) for picture in pictures]
        picture, *large = map(self._pad, pictures, self.factors)
        return picture, self._pad(cropped, value=OUTSIDE), *large

    def _draw_corner(self, scaled: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Top and left of the crop within the scaled image, in scaled pixels."""
        room = [max(0, side - crop) for side, crop in zip(scaled, self.crop_size, strict=True)]
        return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))

    def _cut_label(self, label: np.ndarray, scaled: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
        """The crop (clipped to the scaled image) of the label resized to ``scaled``, by the nearest pixel.

        The centre of pixel i in an image scaled by s is at (i + 1/2) / s in the source, as in OpenCV's
        INTER_NEAREST_EXACT. INTER_NEAREST uses pixel i / s, which is half a pixel off the bilinear image.
        """
        rows, columns = (
            ((first + np.arange(min(crop, new)) + 0.5) * size / new).astype(np.intp)
            for first, crop, new, size in zip(corner, self.crop_size, scaled, label.shape, strict=True)
        )
        return label.take(rows, axis=0).take(columns, axis=1)

    def _cut_image(
        self, image: np.ndarray, shape: tuple[int, int], scaled: tuple[int, int], corner: tuple[int, int]
    ) -> list[np.ndarray]:
        """For each factor f the crop (clipped to the scaled image) of the image resized to f ``scaled``, bilinearly.

        ``warpAffine`` measures from the centre of the first pixel, where the same point is (i + 1/2) / s - 1/2.
        """
        cuts, last = [], 0
        for factor in map(float, self.factors):
            step = [size / (new * factor) for size, new in zip(shape, scaled, strict=True)]
            start = [(first * factor + 0.5) * by - 0.5 for first, by in zip(corner, step, strict=True)]
            sides = [math.ceil(min(c, new) * factor) for c, new in zip(self.crop_size, scaled, strict=True)]
            cuts.append((np.array([[step[1], 0, start[1]], [0, step[0], start[0]]]), sides[::-1]))
            last = max(last, math.floor(start[0] + step[0] * (sides[0] - 1)))
        rows = image[: last + 3]  # bilinear reads the next row too, and rounding may reach the one after
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return [cv2.warpAffine(rows, *cut, flags=flags, borderMode=cv2.BORDER_REPLICATE) for cut in cuts]

    def _pad(self, array: np.ndarray, factor: Fraction | int = 1, value: int | tuple[int, ...] = PADDING) -> np.ndarray:
        """Extends h' w' (...) at the bottom and right to ``factor`` times the crop size."""
        bottom, right = (math.ceil(c * factor) - side for c, side in zip(self.crop_size, array.shape, strict=False))
        if not bottom and not right:
            return array
        return cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=value)


def largest_share(label: np.ndarray) -> float:
    """Share of the most frequent class among the labelled pixels of H W uint8; infinite if there are none."""
    counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()[:OUTSIDE]
    return float(counts.max() / counts.sum()) if counts.any() else np.inf


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion of SSD (Liu et al., ECCV 2016, section 2.2), H W 3 uint8 RGB.

    Each with probability 1/2: brightness +-32; contrast x 0.5..1.5, before or after the colour; saturation x 0.5..1.5;
    hue +-36 degrees. Every step maps 256 values to 256, so it is a table, and consecutive tables are merged.
    """

    def chance() -> bool:
        return rng.random() < 0.5

    values = np.arange(256, dtype=np.float64)
    brightness = rng.uniform(-32, 32) if chance() else 0.0
    contrast = rng.uniform(0.5, 1.5) if chance() else 1.0
    contrast_first = chance()
    saturation = rng.uniform(0.5, 1.5) if chance() else 1.0
    hue = int(rng.integers(-18, 19)) if chance() else 0  # OpenCV's unit of hue is two degrees, 0..179

    before = _table(values + brightness)
    if contrast_first:
        before = _table(before * contrast)
    image = cv2.LUT(image, before)
    if saturation != 1.0 or hue:
        planes = np.stack([(values + hue) % 180, values * saturation, values], axis=1)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), _table(planes)[:, None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else cv2.LUT(image, _table(values * contrast))


def distort_strongly(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``distort``, then grey with probability 1/5 and a Gaussian blur with probability 1/2, H W 3 uint8 RGB.

    The blur's standard deviation is 0.1 to 2 pixels, as in UniMatch (Yang et al., CVPR 2023, section 4.1).
    """
    image = distort(image, rng)
    if rng.random() < 0.2:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, 2.0))
    return image


def _table(values: np.ndarray) -> np.ndarray:
    """Float levels -> uint8, rounded and clipped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
