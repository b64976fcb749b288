import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path

from scripts.preparation.masks import as_corners, find_crossing, rasterize


def test_a_rectangle_on_the_pixels_borders_covers_exactly_its_pixels():
    mask = rasterize(as_corners([1, 1, 4, 1, 4, 3, 1, 3]), (5, 6))
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    assert (mask == expected).all()


def test_a_pixel_belongs_to_a_triangle_if_its_centre_is_inside():
    mask = rasterize(as_corners([(0, 0), (4, 0), (0, 4)]), (4, 4))
    # Centres (x + 0.5, y + 0.5) with x + y + 1 < 4; those on the diagonal belong to one side alone.
    other = rasterize(as_corners([(4, 0), (4, 4), (0, 4)]), (4, 4))
    assert (mask ^ other).all()
    assert mask.sum() in (6, 10)


@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_pixels_equal_those_that_matplotlib_finds_inside(count, seed):
    """A star around a centre does not cross itself."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    if np.diff(angles, append=angles[0] + 2 * np.pi).max() > np.pi - 0.1:
        return
    radius = rng.uniform(3, 9, count)
    corners = np.stack([10 + radius * np.cos(angles), 10 + radius * np.sin(angles)], 1)
    centres = np.stack(np.meshgrid(np.arange(20) + 0.5, np.arange(20) + 0.5), -1).reshape(-1, 2)
    assert (rasterize(corners, (20, 20)).ravel() == Path(corners).contains_points(centres)).all()


def test_a_polygon_that_crosses_itself_is_refused_with_the_place():
    with pytest.raises(ValueError, match=r"crosses itself near \(2.0, 2.0\)"):
        rasterize(as_corners([0, 0, 4, 4, 4, 0, 0, 4]), (5, 5))


def test_a_polygon_that_touches_itself_does_not_cross():
    """A hole as tools write it: the path goes in and comes out on one line."""
    outer, inner = [(0, 0), (6, 0), (6, 6), (0, 6), (0, 0)], [(2, 2), (2, 4), (4, 4), (4, 2), (2, 2)]
    corners = as_corners(outer + inner)
    assert find_crossing(corners) is None
    assert rasterize(corners, (6, 6)).sum() == 36 - 4


def test_corners_outside_the_image_are_refused_beyond_half_a_pixel():
    assert rasterize(as_corners([-0.5, -0.5, 4.5, -0.5, 4.5, 4.5, -0.5, 4.5]), (4, 4)).all()
    for number in (4.6, float("nan")):
        with pytest.raises(ValueError, match=rf"corner \({number}, 0\) is outside the image of 4 x 3"):
            rasterize(as_corners([0, 0, number, 0, 0, 3]), (3, 4))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([0, 0, 1, 1], "2 corners"), ([0, 0, 1], "no pairs"),
     ([0, 0, 1, 1, 0, 0], "2 corners")],
)  # fmt: skip
def test_what_is_no_polygon_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        as_corners(numbers)
