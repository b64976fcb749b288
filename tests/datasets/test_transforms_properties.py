"""What holds of every training sample, whatever the sizes, scale, crop and flip: pictures that encode their labels."""

from pathlib import Path

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datasets.png import PngRows
from datasets.transforms import PADDING, TrainTransform
from utils.names import OUTSIDE

STEP = 5  # grey levels from one row, or column, to the next: so a 50 pixel side fits into 0..250
sides = st.integers(1, 50)
sizes = st.tuples(sides, sides)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def transforms(draw, photometric=None):
    """A transform with crops smaller and larger than the image, and scales that leave one pixel of it."""
    low = draw(st.floats(0.01, 3))
    high = draw(st.floats(low, 3))
    photometric = draw(st.booleans()) if photometric is None else photometric
    ratio = draw(st.sampled_from([1.0, 0.75, 0.1]))
    return TrainTransform(draw(sizes), (low, high), ratio, draw(st.booleans()), photometric)


def coordinates(height, width):
    """Labels that count the rows and the columns, and the picture of both: red rows, green columns, blue 255."""
    rows, columns = np.indices((height, width), dtype=np.uint8)
    return rows, columns, np.stack([STEP * rows, STEP * columns, np.full_like(rows, 255)], axis=2)


@given(sizes, transforms(photometric=False), seeds)
def test_a_pixel_shows_what_its_label_says(size, transform, seed):
    rows, columns, picture = coordinates(*size)
    transform.cat_max_ratio = 1.0  # the two labels are of one crop
    crop, row = transform(picture, rows, np.random.default_rng(seed))
    again, column = transform(picture, columns, np.random.default_rng(seed))
    assert (crop == again).all()
    assert crop.shape == (*transform.crop_size, 3)
    assert row.shape == column.shape == transform.crop_size
    padded = (crop == PADDING).all(2)
    assert (padded == (crop[..., 2] != 255)).all()  # nothing but padding lacks the blue
    assert ((row == OUTSIDE) == padded).all()
    assert ((column == OUTSIDE) == padded).all()
    # Padding lies at the bottom and the right of one rectangle.
    inside = ~padded
    height, width = inside.any(1).sum(), inside.any(0).sum()
    assert inside[:height, :width].all()
    assert height > 0
    # A label is the nearest pixel: half a step from where the picture was read, which cv2 rounds to 1/32.
    bound = STEP * (1 / 2 + 1 / 32 + 1 / 256) + 1 / 2
    assert np.abs(crop[..., 0].astype(float) - STEP * row.astype(float))[inside].max() <= bound
    assert np.abs(crop[..., 1].astype(float) - STEP * column.astype(float))[inside].max() <= bound
    # From left to right all columns rise, or all fall.
    steps = np.diff(column[0, :width].astype(int))
    assert (steps >= 0).all() or (steps <= 0).all()
    assert (np.diff(row[:height, 0].astype(int)) >= 0).all()


@given(sizes, transforms(), seeds)
def test_no_label_is_made_up_and_colours_do_not_move_it(size, transform, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.choice(np.array([3, 7, 200, 255], np.uint8), size)
    crop, truth = transform(image, label, np.random.default_rng(seed))
    assert (crop.dtype, truth.dtype) == (np.uint8, np.uint8)
    assert (crop.flags.c_contiguous, truth.flags.c_contiguous) == (True, True)
    assert set(np.unique(truth)) <= {*np.unique(label), OUTSIDE}
    transform.photometric = not transform.photometric
    assert (transform(image, label, np.random.default_rng(seed))[1] == truth).all()


@given(sizes, transforms(), seeds)
def test_rows_of_a_png_and_mapped_files_give_the_same_sample(size, transform, seed):
    rng = np.random.default_rng(seed)
    image, label = rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(0, 5, size, dtype=np.uint8)
    expected = transform(image, label, np.random.default_rng(seed))
    content = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    mapped = [array.copy() for array in (image, label)]
    for array in mapped:
        array.setflags(write=False)
    for pair in ((PngRows(content, Path("image.png")), label), mapped):
        found = transform(*pair, np.random.default_rng(seed))
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))
