import numpy as np
import pytest
from PIL import Image

from scripts.preparation.labels import decide_classes, read_colors, read_samples
from scripts.preparation.pairs import Pair
from scripts.preparation.problems import DataError
from tests.scripts.preparation.folders import SIZE, halves, image, save

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


def colored(*colors):
    """H W 3: vertical stripes."""
    width = SIZE[1] // len(colors)
    return np.repeat(np.array(colors, np.uint8), width, axis=0)[None].repeat(SIZE[0], axis=0)[:, : SIZE[1]]


def classes(root, *masks, colors=None, **options):
    """Of images m0.png ... with these masks."""
    pairs = []
    for number, mask in enumerate(masks):
        size = (np.asarray(mask)).shape[:2]
        image(root / f"{number}.png", number, size)
        if isinstance(mask, np.ndarray):
            save(root / f"m{number}.png", mask)
        else:
            mask.save(root / f"m{number}.png")
        pairs.append(Pair(f"{number}.png", f"m{number}.png"))
    if colors is not None:
        (root / "colors.txt").write_text(colors)
        colors = read_colors(root / "colors.txt")
    return decide_classes(read_samples(root, pairs), colors=colors, **options)


def refused(root, *masks, **options):
    with pytest.raises(DataError) as error:
        classes(root, *masks, **options)
    return "\n".join(error.value.problems)


def test_ids_become_classes_and_255_is_void(tmp_path):
    mask = halves(3, 7)
    mask[0] = 255
    options, assumptions = classes(tmp_path, mask)
    assert options["class_names"] == ["class_3", "class_7"]
    assert options["id_table"] == {3: 0, 7: 1, 255: 255}
    assert any("--classes" in text for text in assumptions)
    assert any(text.startswith("255 in the masks is void") for text in assumptions)


def test_masks_of_0_and_255_alone_hold_two_classes(tmp_path):
    options, assumptions = classes(tmp_path, halves(0, 255), names=["grass", "road"])
    assert options["id_table"] == {0: 0, 255: 1}
    assert any("--ignore 255" in text for text in assumptions)


@pytest.mark.parametrize(
    ("mask", "table"),
    [
        (halves().astype(bool), {0: 0, 1: 1, 255: 255}),  # 1 bit
        (np.where(halves(), 300, 4000).astype(np.uint16), {300: 0, 4000: 1, 255: 255}),
        (Image.fromarray(halves(2, 5)).convert("P"), {2: 0, 5: 1, 255: 255}),
    ],
)
def test_every_form_of_ids_is_read_exactly(tmp_path, mask, table):
    if isinstance(mask, Image.Image):
        mask = Image.fromarray(halves(2, 5))
        mask.putpalette([9, 9, 9] * 256)
    assert classes(tmp_path, mask)[0]["id_table"] == table


def test_names_stand_for_the_ids_from_0_on_or_for_those_found(tmp_path):
    assert classes(tmp_path, halves(0, 2), names=["a", "b", "c"])[0]["id_table"] == {0: 0, 1: 1, 2: 2, 255: 255}
    options, assumptions = classes(tmp_path, halves(7, 9), names=["a", "b"])
    assert options["id_table"] == {7: 0, 9: 1, 255: 255}
    assert any("7 = a, 9 = b" in text for text in assumptions)
    assert "3 classes are named, and the masks hold 2" in refused(tmp_path, halves(7, 9), names=["a", "b", "c"])


def test_ignored_ids_are_void(tmp_path):
    mask = halves(0, 1)
    mask[:5] = 2
    assert classes(tmp_path, mask, ignore=["0"], names=["a", "b"])[0]["id_table"] == {1: 0, 2: 1, 0: 255, 255: 255}
    assert "--ignore 9: expected one of 0, 1" in refused(tmp_path, halves(), ignore=["9"])


@pytest.mark.parametrize(
    "text",
    ["255 0 0\t\tRoad\n0 255 0\tGrass\n0 0 0 Void\n", "# Table\nRoad: 255, 0, 0\nGrass: 0,255,0\nvoid: 0,0,0\n",
     "name,r,g,b\nRoad,255,0,0\nGrass,0,255,0\nunlabelled,0,0,0\n",
     "Road:255,0,0::\nGrass:0,255,0::\nignore:0,0,0::\n"],
)  # fmt: skip
def test_each_form_of_a_colour_file_names_the_classes(tmp_path, text):
    options, _ = classes(tmp_path, colored(RED, GREEN), colors=text)
    assert options["class_names"] == ["Road", "Grass"]
    assert options["color_table"] == {RED: 0, GREEN: 1, BLACK: 255}
    assert options["palette"] == [RED, GREEN]


def test_two_colours_of_one_name_are_one_class(tmp_path):
    options, _ = classes(tmp_path, colored(RED, GREEN, BLACK, BLACK), colors="255 0 0 car\n0 255 0 car\n0 0 0 road\n")
    assert options["color_table"] == {RED: 0, GREEN: 0, BLACK: 1}
    assert options["palette"] == [RED, BLACK]


def test_a_colour_that_the_file_does_not_name_is_named_with_the_mask(tmp_path):
    text = refused(tmp_path, colored(RED, GREEN), colored(RED, (1, 2, 3)), colors="255 0 0 a\n0 255 0 b\n")
    assert text.startswith("m1.png: 640 pixels have 1 colours")
    assert "RGB (1, 2, 3)" in text


def test_without_a_file_each_colour_is_a_class_and_it_is_said(tmp_path):
    options, assumptions = classes(tmp_path, colored(RED, GREEN))
    assert options["color_table"] == {GREEN: 0, RED: 1}
    assert "--colors" in assumptions[0]
    assert classes(tmp_path, colored(RED, GREEN, BLACK, BLACK), ignore=["0,0,0"])[0]["color_table"][BLACK] == 255
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    assert "too many to take each for a class" in refused(tmp_path, noise)


def test_a_colour_file_names_ids_by_its_lines(tmp_path):
    assert classes(tmp_path, halves(), colors="0 0 0 sky\n9 9 9 tree\n")[0]["class_names"] == ["sky", "tree"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red\n1 2 3 a\n4 5 x\n", "colors.txt:3: '4 5 x'; expected 'R G B name'"),
        ("1 2 300 a\n", "a level above 255"),
        ("1 2 3 a\n1 2 3 b\n", "(1, 2, 3) is the colour of 'a' already"),
        ("\n", "names no colour"),
    ],
)
def test_a_wrong_colour_file_is_refused_with_its_line(tmp_path, text, message):
    assert message in refused(tmp_path, colored(RED, GREEN), colors=text)


def test_ids_and_colours_in_one_folder_are_refused(tmp_path):
    assert "m0.png holds ids" in refused(tmp_path, halves(), colored(RED, GREEN))


def test_numbers_of_objects_are_not_classes(tmp_path):
    mask = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
    assert "are they numbers of objects" in refused(tmp_path, mask)


def test_every_mask_that_cannot_be_read_exactly_is_named(tmp_path):
    pairs = [Pair(f"{number}.png", f"m{number}.jpg") for number in range(2)]
    for pair in pairs:
        image(tmp_path / pair.image)
        save(tmp_path / pair.label, halves())
    with pytest.raises(DataError) as error:
        read_samples(tmp_path, pairs)
    for pair, text in zip(pairs, error.value.problems, strict=True):
        assert text.startswith(f"{tmp_path}/{pair.label} does not store ids exactly: it is compressed with loss")
