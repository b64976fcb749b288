import cv2
import numpy as np
import pytest

from datasets.base import read_classes, read_table
from utils.names import OUTSIDE, VOID
from utils.visualize import ERROR_COLORS, GAP, LINE, colorize, error_map, overlay, panel, plot_curves, write_png

PALETTE = [(10, 20, 30), (200, 100, 0)]
LABEL = np.array([[0, 1], [255, 0]], np.uint8)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_colorize_by_hand():
    colors = colorize(LABEL, PALETTE)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[10, 20, 30], [200, 100, 0]], [[255, 255, 255], [10, 20, 30]]]


def test_colorize_refuses_what_it_has_no_colour_for():
    with pytest.raises(ValueError, match=r"\[2\] have no colour"):
        colorize(np.array([[0, 2]]), PALETTE)
    with pytest.raises(ValueError, match=r"\[-1\] have no colour"):
        colorize(np.array([[0, -1]]), PALETTE)


def test_overlay_mixes_and_leaves_void_alone():
    image = np.full((2, 2, 3), 100, np.uint8)
    mixed = overlay(image, LABEL, PALETTE, alpha=0.25)
    assert mixed.tolist() == [[[78, 80, 82], [125, 100, 75]], [[100, 100, 100], [78, 80, 82]]]
    assert np.array_equal(overlay(image, LABEL, PALETTE, alpha=0), image)


def test_padding_is_shown_as_void_is():
    padded, image = np.where(LABEL == VOID, OUTSIDE, LABEL), np.full((2, 2, 3), 100, np.uint8)
    assert np.array_equal(colorize(padded, PALETTE), colorize(LABEL, PALETTE))
    assert np.array_equal(overlay(image, padded, PALETTE), overlay(image, LABEL, PALETTE))
    assert np.array_equal(error_map(LABEL * 0, padded), error_map(LABEL * 0, LABEL))


def test_error_map_by_hand():
    errors = error_map(np.array([[0, 0], [1, 0]], np.uint8), LABEL)
    correct, wrong, void = (list(ERROR_COLORS[name]) for name in ("correct", "wrong", "void"))
    assert errors.tolist() == [[correct, wrong], [void, correct]]
    assert errors.dtype == np.uint8


def test_panel_places_every_picture_under_its_title():
    rows = [[("image", picture(40, 60, 0)), ("truth", picture(40, 60, 1))]]
    rows += [[("wide", picture(20, 60, 2)), ("tall", picture(70, 60, 3))]]
    width = 2 * 60 + 3 * GAP
    out = panel(rows, width=width)
    assert out.shape == (LINE + 40 + GAP + LINE + 70 + GAP, width, 3)
    lefts = [GAP, GAP + 60 + GAP]
    for row, title_top in zip(rows, [0, LINE + 40 + GAP], strict=True):
        for (_, image), left in zip(row, lefts, strict=True):
            top = title_top + LINE
            shown = out[top : top + image.shape[0], left : left + 60]
            assert np.array_equal(shown[2:-2, 2:-2], image[2:-2, 2:-2])  # a grey line is around each
            assert out[title_top : top - 2, left : left + 60].min() < 128  # there is text above each
    assert np.array_equal(out, panel(rows, width=width))
    renamed = panel([[("student", rows[0][0][1]), rows[0][1]], rows[1]], width=width)
    assert not np.array_equal(out[:LINE], renamed[:LINE])
    assert np.array_equal(out[LINE:], renamed[LINE:])


def test_panel_scales_pictures_to_equal_columns_and_keeps_proportions():
    small, large = np.full((10, 30, 3), 7, np.uint8), np.full((100, 300, 3), 9, np.uint8)
    out = panel([[("small", small), ("large", large)]], width=2 * 150 + 3 * GAP)
    assert out.shape == (LINE + 50 + GAP, 2 * 150 + 3 * GAP, 3)
    assert (out[LINE + 2 : LINE + 48, GAP + 2 : GAP + 148] == 7).all()
    assert (out[LINE + 2 : LINE + 48, GAP + 150 + GAP + 2 : -GAP - 2] == 9).all()


def test_panel_legend_shows_every_colour_with_a_name():
    names = {f"{'_$'[i % 2]}class {i}$": (5 * i, 255 - 5 * i, 77) for i in range(11)}  # neither hidden nor a formula
    plain = panel([[("image", picture(40, 300))]], width=600)
    out = panel([[("image", picture(40, 300))]], names, width=600)
    assert np.array_equal(out[: len(plain) - GAP], plain[:-GAP])
    strip = out[len(plain) - GAP :]
    for color in names.values():
        rows, columns = np.nonzero((strip == color).all(-1))
        assert len(rows) > 100
        beside = strip[rows.min() : rows.max() + 1, columns.max() + 8 : columns.max() + 120]
        assert (beside.max(-1) < 128).any()  # dark text


CAMVID = list({train: color for train, color, _ in reversed(read_table("camvid"))}.values())[::-1]
CITYSCAPES = read_classes("cityscapes")[1]


@pytest.mark.parametrize("palette", [CAMVID, CITYSCAPES], ids=["camvid", "cityscapes"])
def test_void_and_the_colours_of_errors_are_far_from_each_other_and_from_every_class(palette):
    special = np.array(list(ERROR_COLORS.values()), int)
    between = np.abs(special[:, None] - special[None]).max(-1)
    assert between[~np.eye(3, dtype=bool)].min() >= 60
    assert np.abs(special[:, None] - np.array(palette, int)[None]).max(-1).min() >= 30


def test_png_round_trip_in_colour_and_as_class_map(tmp_path):
    image = picture(5, 7)
    write_png(tmp_path / "new" / "folder" / "image.png", image)
    assert np.array_equal(cv2.imread(str(tmp_path / "new/folder/image.png"))[..., ::-1], image)
    write_png(tmp_path / "label.png", LABEL)
    assert np.array_equal(cv2.imread(str(tmp_path / "label.png"), cv2.IMREAD_UNCHANGED), LABEL)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    write_png(path, picture(5, 7))
    old = path.read_bytes()

    def full_disk(_):
        raise OSError("no space left")

    monkeypatch.setattr("utils.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_png(path, picture(5, 7, seed=1))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["image.png"]


def test_png_refuses_other_types_and_names(tmp_path):
    with pytest.raises(ValueError, match="int64"):
        write_png(tmp_path / "a.png", LABEL.astype(np.int64))
    with pytest.raises(ValueError, match=r"\(2, 2, 1\)"):
        write_png(tmp_path / "a.png", LABEL[..., None])
    with pytest.raises(ValueError, match="ends in .png"):
        write_png(tmp_path / "a.jpg", LABEL)
    assert not list(tmp_path.iterdir())


def test_curves_draw_each_line_in_its_own_colour(tmp_path):
    curves = {"teacher": [(0, 0.1), (100, 0.7)], "student": [(0, 0.2), (50, float("nan")), (100, 0.5)], "none": []}
    plot_curves(curves, tmp_path / "curves.png", "mIoU", "validation")
    image = cv2.imread(str(tmp_path / "curves.png"))[..., ::-1]
    assert image.shape == (900, 1600, 3)
    teacher = (image == (0x00, 0x72, 0xB2)).all(-1).sum()
    student = (image == (0xD5, 0x5E, 0x00)).all(-1).sum()
    assert teacher > 4 * student > 0  # the nan breaks the student's line: dots and its legend line are left
