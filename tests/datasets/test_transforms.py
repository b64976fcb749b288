import math
from fractions import Fraction

import cv2
import numpy as np
import pytest

from datasets.transforms import PADDING, TrainTransform, distort, largest_share
from utils.names import OUTSIDE, VOID

H, W = 60, 90


@pytest.fixture
def sample():
    """A smooth picture, and a label of 6 x 6 blocks."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (H, W, 3), dtype=np.uint8), (0, 0), 2)
    label = rng.integers(0, 19, (H // 6, W // 6), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    return image, label


def scaled_size(scale: float) -> tuple[int, int]:
    return round(H * scale), round(W * scale)


def best_match(full: np.ndarray, crop: np.ndarray) -> tuple[int, int]:
    """Where in ``full`` the crop was cut out, by exhaustive search."""
    height, width = crop.shape[:2]
    corners = [(y, x) for y in range(full.shape[0] - height + 1) for x in range(full.shape[1] - width + 1)]
    return max(corners, key=lambda c: (full[c[0] : c[0] + height, c[1] : c[1] + width] == crop).mean())


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.37, 2.0])
def test_crop_first_equals_resizing_all_and_cropping(sample, scale):
    image, label = sample
    transform = TrainTransform((24, 32), (scale, scale), flip=False)
    size = scaled_size(scale)[::-1]
    full_image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    full_label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    for seed in range(3):
        crop, truth = transform(image, label, np.random.default_rng(seed))
        assert crop.shape == (24, 32, 3)
        y, x = best_match(full_label, truth)
        window = full_label[y : y + 24, x : x + 32]
        assert (window == truth).mean() >= 0.99
        error = np.abs(crop.astype(int) - full_image[y : y + 24, x : x + 32])
        assert error.max() <= 1
        if scale == 1.0:
            assert (window == truth).all()
            assert error.max() == 0


class Recorder:
    """An image that notes how many of its rows are read, and gives no others."""

    def __init__(self, image):
        self.image, self.shape, self.read = image, image.shape, 0

    def __getitem__(self, rows):
        assert (rows.start, rows.step) == (None, None)
        self.read = min(rows.stop, len(self.image))
        return self.image[rows].copy()


def test_rows_below_the_crop_are_not_read_and_would_change_nothing():
    """Against the whole image under the same transform: all bits equal, and reading stops with the crop."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (H, W, 3), dtype=np.uint8), np.zeros((H, W), np.uint8)
    spared = 0
    for seed in range(300):
        transform = TrainTransform((int(rng.integers(1, 40)), 32), photometric=True)
        rows = Recorder(image)
        crop, _ = transform(rows, label, np.random.default_rng(seed))
        painted = image.copy()
        painted[rows.read :] = 255
        for other in (image, painted):
            assert (transform(Whole(other), label, np.random.default_rng(seed))[0] == crop).all()
        spared += H - rows.read
    assert spared > 300 * H / 5


class Whole(Recorder):
    """An image that gives all of its rows whatever is asked for."""

    def __getitem__(self, rows):
        return self.image


@pytest.mark.parametrize("scale", [0.61, 1.37])
def test_label_is_the_exact_nearest_pixel(scale):
    """Against rational arithmetic: pixel i of n is pixel floor((i + 1/2) * size / n) of the source."""
    label = (np.arange(H)[:, None] + np.arange(W)[None]).astype(np.uint8)
    height, width = scaled_size(scale)
    _, truth = TrainTransform((height, width), (scale, scale), flip=False)(
        np.zeros((H, W, 3), np.uint8), label, np.random.default_rng(0)
    )
    rows = [int((i + Fraction(1, 2)) * H / height) for i in range(height)]
    columns = [int((i + Fraction(1, 2)) * W / width) for i in range(width)]
    assert truth.tolist() == [[row + column for column in columns] for row in rows]


def test_image_and_label_stay_aligned():
    """The label is the picture's own edge: wherever it is cut, scaled or mirrored, the two agree to half a pixel."""
    image = np.zeros((H, W, 3), np.uint8)
    image[:, 45:] = image[30:] = 200
    label = (image[..., 0] > 100).astype(np.uint8)
    transform = TrainTransform((40, 50), (0.5, 2.0))
    for seed in range(30):
        crop, truth = transform(image, label, np.random.default_rng(seed))
        grey = crop[..., 0]
        sure = (truth != OUTSIDE) & ((grey < 60) | (grey > 140))
        assert sure.any()
        assert ((grey > 100) == truth)[sure].all()


@pytest.mark.parametrize("larger", [2, Fraction(3, 2)])
def test_a_larger_picture_of_the_crop_changes_nothing_else(sample, larger):
    """Also if the image is padded, mirrored and distorted, and of a file of which only some rows are read."""
    options = {"crop_size": (41, 50), "scale_range": (0.5, 2.0), "cat_max_ratio": 0.3, "photometric": True}
    with_it, without = TrainTransform(**options, larger=larger), TrainTransform(**options)
    for seed in range(40):
        image, truth, large = with_it(Recorder(sample[0]), sample[1], np.random.default_rng(seed))
        whole = with_it(Whole(sample[0]), sample[1], np.random.default_rng(seed))
        expected = without(*sample, np.random.default_rng(seed))
        assert all(
            (one == two).all()
            for one, two in zip([image, truth, large, image, truth], [*whole, *expected], strict=True)
        )
        assert large.shape == (math.ceil(41 * larger), math.ceil(50 * larger), 3)
        assert large.flags.c_contiguous


def test_the_larger_picture_shows_the_same_place():
    """On a ramp, 3 x 3 of its pixels have the mean of 2 x 2 pixels of the crop: both cover the same square."""
    ramp = (np.arange(H)[:, None] + np.arange(W)[None]).astype(np.uint8)
    transform = TrainTransform((24, 32), (0.6, 1.9), larger=Fraction(3, 2))
    for seed in range(30):
        crop, _, large = transform(ramp[..., None].repeat(3, 2), ramp, np.random.default_rng(seed))
        small, big = (each[..., 0].astype(float) for each in (crop, large))
        difference = small.reshape(12, 2, 16, 2).mean((1, 3)) - big.reshape(12, 3, 16, 3).mean((1, 3))
        assert np.abs(difference[1:-1, 1:-1]).max() <= 1  # the outermost pixels of an image repeat its edge


def test_the_larger_picture_holds_details_that_the_crop_has_lost(sample):
    """Twice as large, at scale 1/2, it is the part of the image itself."""
    crop, truth, large = TrainTransform((20, 30), (0.5, 0.5), flip=False, larger=2)(*sample, np.random.default_rng(3))
    y, x = best_match(cv2.resize(sample[1], (45, 30), interpolation=cv2.INTER_NEAREST_EXACT), truth)
    assert (large == sample[0][2 * y : 2 * y + 40, 2 * x : 2 * x + 60]).all()


def test_crop_and_larger_picture_are_distorted_alike_and_padded_alike():
    image, label = np.full((20, 30, 3), (60, 120, 180), np.uint8), np.zeros((20, 30), np.uint8)
    transform = TrainTransform((24, 32), (1.0, 1.0), photometric=True, larger=2)
    for seed in range(30):
        crop, _, large = transform(image, label, np.random.default_rng(seed))
        assert (
            np.abs(large[:40, :60].astype(int) - crop[0, 0]).max() <= 1
        )  # OpenCV's rounding of hues depends on the width
        assert (large[40:] == PADDING).all()
        assert (large[:, 60:] == PADDING).all()


def test_small_images_are_padded_with_grey_and_outside_at_bottom_and_right(sample):
    crop, truth = TrainTransform((80, 100), (1.0, 1.0), flip=False)(*sample, np.random.default_rng(0))
    assert (crop[:H, :W] == sample[0]).all()
    assert (truth[:H, :W] == sample[1]).all()
    assert (truth[H:] == OUTSIDE).all()
    assert (truth[:, W:] == OUTSIDE).all()
    assert (crop[H:] == PADDING).all()
    assert (crop[:, W:] == PADDING).all()


def test_flip_mirrors_both_half_of_the_time(sample):
    image, label = sample
    mirrored = 0
    for seed in range(200):
        crop, truth = TrainTransform((H, W), (1.0, 1.0))(image, label, np.random.default_rng(seed))
        flipped = not (truth == label).all()
        mirrored += flipped
        step = -1 if flipped else 1
        assert (truth == label[:, ::step]).all()
        assert (crop == image[:, ::step]).all()
    assert 70 < mirrored < 130


def test_crops_reach_every_corner(sample):
    label = (10 * np.arange(H)[:, None] + np.arange(W)[None]).astype(np.uint8)  # its first pixel tells the corner
    transform = TrainTransform((H - 3, W - 2), (1.0, 1.0), flip=False)
    corners = {int(transform(sample[0], label, np.random.default_rng(seed))[1][0, 0]) for seed in range(150)}
    assert corners == {10 * top + left for top in range(4) for left in range(3)}


def test_edges_are_not_darkened():
    """Scaled up, the outermost pixels lie beyond the centres of the source's: they repeat it."""
    image, label = np.full((10, 12, 3), 200, np.uint8), np.zeros((10, 12), np.uint8)
    crop, _ = TrainTransform((20, 24), (2.0, 2.0))(image, label, np.random.default_rng(0))
    assert (crop == 200).all()


def test_scale_is_drawn_over_the_whole_range():
    """A ramp of one grey level a column: the slope of the crop is the inverse of the scale."""
    image = np.arange(W, dtype=np.uint8)[None, :, None].repeat(H, 0).repeat(3, 2)
    label = np.zeros((H, W), np.uint8)
    transform = TrainTransform((20, 30), flip=False)
    scales = []
    for seed in range(200):
        row = transform(image, label, np.random.default_rng(seed))[0][5, :, 0].astype(float)
        scales.append(20 / (row[25] - row[5]))
    assert 0.45 < min(scales) < 0.6
    assert 1.8 < max(scales) < 2.3
    assert 1.1 < np.mean(scales) < 1.4


def test_same_generator_same_result_and_sources_untouched(sample):
    image, label = (array.copy() for array in sample)
    transform = TrainTransform((24, 32), cat_max_ratio=0.5, photometric=True)
    first, second, other = (transform(image, label, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first[0] == second[0]).all()
    assert (first[1] == second[1]).all()
    assert not (first[0] == other[0]).all()
    assert (image == sample[0]).all()
    assert (label == sample[1]).all()
    assert all(array.flags.c_contiguous and array.dtype == np.uint8 for array in first)


def test_cat_max_ratio_avoids_crops_of_one_class():
    """Class 1 is a stripe at the right end: one draw in six meets it enough."""
    image, label = np.zeros((20, 200, 3), np.uint8), np.zeros((20, 200), np.uint8)
    label[:, 170:] = 1

    def mixed(ratio):
        transform = TrainTransform((20, 40), (1.0, 1.0), cat_max_ratio=ratio)
        crops = [transform(image, label, np.random.default_rng(seed))[1] for seed in range(100)]
        return sum(largest_share(crop) <= 0.9 for crop in crops)

    assert mixed(1.0) < 45
    assert mixed(0.9) > 75


def test_cat_max_ratio_gives_up_on_a_single_class():
    label = np.full((20, 40), 3, np.uint8)
    _, truth = TrainTransform((10, 10), cat_max_ratio=0.5)(
        np.zeros((20, 40, 3), np.uint8), label, np.random.default_rng(0)
    )
    assert (truth == 3).all()


def test_largest_share_counts_labelled_pixels():
    assert largest_share(np.array([[1, 1, 1, 2], [VOID, VOID, OUTSIDE, OUTSIDE]], np.uint8)) == pytest.approx(0.75)
    assert largest_share(np.array([[VOID, OUTSIDE]], np.uint8)) == np.inf


class Scripted:
    """Stands in for a generator: coins fall as told (True below one half), numbers as told."""

    def __init__(self, coins, numbers=()):
        self.coins, self.numbers = iter(coins), iter(numbers)

    def random(self):
        return 0.0 if next(self.coins) else 0.9

    def uniform(self, low, high):
        number = next(self.numbers)
        assert low <= number <= high
        return number

    def integers(self, low, high):
        number = next(self.numbers)
        assert low <= number < high
        return number


PIXELS = np.array([[[100, 50, 200], [10, 250, 128]]], np.uint8)


@pytest.mark.parametrize(
    ("coins", "numbers", "expected"),
    [  # coins: brightness, contrast, contrast first, saturation, hue
        ((0, 0, 0, 0, 0), (), [[100, 50, 200], [10, 250, 128]]),
        ((1, 0, 0, 0, 0), (20,), [[120, 70, 220], [30, 255, 148]]),
        ((1, 0, 0, 0, 0), (-20,), [[80, 30, 180], [0, 230, 108]]),
        ((0, 1, 1, 0, 0), (1.5,), [[150, 75, 255], [15, 255, 192]]),
        ((1, 1, 1, 0, 0), (20, 0.5), [[60, 35, 110], [15, 128, 74]]),
    ],
)
def test_brightness_and_contrast_by_hand(coins, numbers, expected):
    assert distort(PIXELS, Scripted(coins, numbers))[0].tolist() == expected


def test_contrast_after_equals_before_where_the_colour_stays():
    early, late = (distort(PIXELS, Scripted((0, 1, first, 0, 0), (0.7,))) for first in (1, 0))
    assert (early == late).all()


def test_hue_and_saturation_by_hand():
    """Pure red turned by 36 degrees is (255, 153, 0); half as saturated, it is (255, 128, 128)."""
    red = np.array([[[255, 0, 0]]], np.uint8)
    turned = distort(red, Scripted((0, 0, 0, 0, 1), (18,)))[0, 0]
    assert np.abs(turned.astype(int) - [255, 153, 0]).max() <= 1
    pale = distort(red, Scripted((0, 0, 0, 1, 0), (0.5,)))[0, 0]
    assert np.abs(pale.astype(int) - [255, 127, 127]).max() <= 1
    wrapped = distort(red, Scripted((0, 0, 0, 0, 1), (-18,)))[0, 0]
    assert np.abs(wrapped.astype(int) - [255, 0, 153]).max() <= 1


def test_contrast_after_hue_acts_on_the_turned_colour():
    red = np.array([[[255, 0, 0]]], np.uint8)
    result = distort(red, Scripted((0, 1, 0, 0, 1), (0.5, 18)))[0, 0]
    assert np.abs(result.astype(int) - [128, 76, 0]).max() <= 1
