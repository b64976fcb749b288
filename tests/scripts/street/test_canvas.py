"""The camera and the brush against values worked out by hand."""

import numpy as np
import pytest

from scripts.street.canvas import Canvas, Label, box, limb, ring

WALL = np.array(((-1, 0.5, 10), (1, 0.5, 10), (1, 2.5, 10), (-1, 2.5, 10)), float)  # 2 m x 2 m, 10 m ahead


@pytest.fixture
def canvas():
    """100 x 100 pixels, focal length 100, looking along z from 1.5 m; sun behind the camera; no haze to speak of."""
    return Canvas((100, 100), 1.0, (0.5, 0.5), 1.5, 0.0, np.array((0.0, -1.0)), 0.4, (1, 1, 1), (200, 200, 200), np.inf)


def test_projection(canvas):
    points = np.array(((0, 1.5, 10), (1, 1.5, 10), (1, 1.5, 20), (0, 0, 10), (0, 2.5, 10)), float)
    expected = [(50, 50), (60, 50), (55, 50), (50, 65), (50, 40)]
    np.testing.assert_allclose(canvas.project(points), expected)


def test_a_bend_shifts_what_is_far(canvas):
    canvas.curve = 0.01  # 1 m at 10 m, 4 m at 20 m
    np.testing.assert_allclose(canvas.project(np.array(((0, 1.5, 10.0), (0, 1.5, 20.0)))), [(60, 50), (70, 50)])


def test_paint_fills_picture_and_label_in_the_same_place(canvas):
    canvas.paint(WALL, (250, 10, 20), Label.CAR, rough=1.0)
    inside = np.zeros((100, 100), bool)
    inside[41:60, 41:60] = True
    outside = np.ones((100, 100), bool)
    outside[39:62, 39:62] = False
    assert (canvas.label[inside] == Label.CAR).all()
    assert (canvas.label[outside] == 0).all()
    assert (canvas.paint_layer[inside] == (250, 10, 20, 255)).all()
    assert (canvas.paint_layer[outside] == 0).all()


def test_see_through_and_unlabelled(canvas):
    canvas.paint(WALL, None, Label.FENCE)
    assert canvas.label[50, 50] == Label.FENCE
    assert not canvas.paint_layer.any()
    canvas.paint(WALL, (90, 90, 90))
    assert canvas.label[50, 50] == Label.FENCE
    assert canvas.paint_layer[50, 50, 0] == 90


def test_haze_keeps_a_part_that_falls_with_the_distance(canvas):
    canvas.visibility = 10.0
    canvas.paint(WALL, (100, 0, 250))
    kept = np.exp(-1.0)
    expected = np.array((100, 0, 250)) * kept + 200 * (1 - kept)
    np.testing.assert_allclose(canvas.paint_layer[50, 50, :3], expected, atol=1)


def test_ground_fades_by_the_row(canvas):
    canvas.visibility = 10.0
    canvas.fade_ground()
    assert not canvas.paint_layer[:51].any()  # the sky is left alone
    np.testing.assert_allclose(canvas.paint_layer[65, 7, :3], 200 * (1 - np.exp(-1.0)), atol=1)  # ground 10 m ahead
    assert canvas.paint_layer[55, 7, 0] > canvas.paint_layer[99, 7, 0]


def test_light_colours_all_but_what_glows(canvas):
    canvas.light = np.array((0.5, 1.0, 0.25))
    canvas.paint(WALL, (200, 100, 40))
    np.testing.assert_allclose(canvas.paint_layer[50, 50, :3], (100, 100, 10), atol=1)
    canvas.paint(WALL, (200, 100, 40), glow=True)
    np.testing.assert_allclose(canvas.paint_layer[50, 50, :3], (200, 100, 40), atol=1)


def test_shade_is_full_towards_the_sun_and_ambient_away_from_it(canvas):
    assert canvas.shade(0, -1) == pytest.approx(1.0)
    assert canvas.shade(0, 1) == pytest.approx(0.4)
    assert canvas.shade(1, 0) == pytest.approx(0.4)


def test_place_stands_a_figure_on_its_feet(canvas):
    canvas.place([(box(0, 1, 0, 2), (9, 9, 9))], (0, 0, 10), scale=0.5, label=Label.CAR)  # 0.5 m wide, 1 m high
    rows, columns = np.nonzero(canvas.label == Label.CAR)
    assert (columns.min(), columns.max()) == (50, 55)
    assert (rows.min(), rows.max()) == (55, 65)


def test_discs_have_their_radius(canvas):
    canvas.discs(np.array([(0, 1.5, 10.0)]), [1.0], [(255, 0, 0)], Label.CAR)
    assert (canvas.label == Label.CAR).sum() == pytest.approx(np.pi * 10**2, rel=0.12)


def test_shapes():
    np.testing.assert_allclose(limb((0, 0), (0, 2), 1.0), [(-0.5, 0), (-0.5, 2), (0.5, 2), (0.5, 0)])
    np.testing.assert_allclose(np.hypot(*(ring((3, 4), 2.0, 7) - (3, 4)).T), 2.0)
