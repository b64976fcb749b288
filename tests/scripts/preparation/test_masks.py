import json
import sys

import numpy as np
import pytest
from PIL import Image

from scripts.preparation.labels import read_colors
from scripts.preparation.masks import write_masks
from scripts.preparation.pairs import find_pairs
from scripts.preparation.problems import DataError
from tests.scripts.preparation.folders import image

BOX = [2, 2, 12, 2, 12, 12, 2, 12]  # 10 x 10 pixels
SMALL = [4, 4, 6, 4, 6, 6, 4, 6]  # 2 x 2, inside it


def read(path):
    return np.array(Image.open(path))


def expected(size=(16, 20), box=1, small=2):
    mask = np.zeros(size, np.uint8)
    mask[2:12, 2:12] = box
    mask[4:6, 4:6] = small
    return mask


def coco(root, annotations, file="annotations/instances.json", image_file="images/a.png", **more):
    image(root / image_file, size=(16, 20))
    document = {
        "images": [{"id": 7, "file_name": "a.png", "height": 16, "width": 20}],
        "categories": [{"id": 30, "name": "car"}, {"id": 20, "name": "road"}],
        "annotations": [{"id": n, "image_id": 7, **entry} for n, entry in enumerate(annotations)],
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(document | more))
    return root


def polygon(numbers, category=20):
    return {"category_id": category, "segmentation": [numbers]}


def labelme(root, shapes, name="a"):
    image(root / f"{name}.jpg", size=(16, 20))
    document = {"imagePath": f"{name}.jpg", "imageData": None, "shapes": shapes}
    (root / f"{name}.json").write_text(json.dumps(document))
    return root


def shape(numbers, label, kind="polygon"):
    return {"label": label, "shape_type": kind, "points": np.reshape(numbers, (-1, 2)).tolist()}


def yolo(root, lines, folder="labels"):
    image(root / "images/a.png", size=(16, 20))
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "a.txt").write_text("\n".join(lines))
    return root


def normal(numbers):
    return " ".join(str(value / side) for value, side in zip(numbers, [20, 16] * 4, strict=True))


def problems(root, classes=None):
    with pytest.raises(DataError) as error:
        write_masks(root, classes)
    assert not (root / "masks").exists()
    assert not list(root.glob(".masks-*"))
    return "\n".join(error.value.problems)


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_of_two_objects_is_on_top_in_any_order(tmp_path, order):
    """Categories are numbered in the order of their ids in the file, after the background."""
    written = write_masks(coco(tmp_path, [polygon(BOX), polygon(SMALL, 30)][::order]))
    assert written == ("COCO JSON", 1, ["background", "road", "car"])
    assert (read(tmp_path / "masks/a.png") == expected()).all()
    assert list(read_colors(tmp_path / "masks/colors.txt").values()) == written[2]
    assert find_pairs(tmp_path).pairs == [("images/a.png", "masks/a.png")]


def test_an_object_of_several_polygons_is_their_union(tmp_path):
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 4, 1, 4, 4, 1, 4]]
    write_masks(coco(tmp_path, [{"category_id": 20, "segmentation": parts}]))
    assert read(tmp_path / "masks/a.png").sum() == 4 + 9 - 1


def test_run_lengths_give_the_pixels_of_pycocotools(tmp_path):
    tools = pytest.importorskip("pycocotools.mask", reason="run lengths need pycocotools: pip install '.[coco]'")
    pixels = np.random.default_rng(0).random((16, 20)) < 0.5
    runs = tools.encode(np.asfortranarray(pixels, np.uint8))
    flat = pixels.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    plain = {"size": [16, 20], "counts": np.diff(changes, prepend=0).tolist()}
    for number, form in enumerate(({**runs, "counts": runs["counts"].decode()}, plain)):
        root = tmp_path / str(number)
        write_masks(coco(root, [{"category_id": 20, "segmentation": form, "iscrowd": 1}]))
        assert (read(root / "masks/a.png") == pixels).all()
    runs = {"size": [20, 16], "counts": [320]}
    assert "run lengths are for [20, 16]" in problems(coco(tmp_path / "x", [{"category_id": 20, "segmentation": runs}]))
    runs = {"size": [16, 20], "counts": [3]}
    assert "add up to 3 pixels, not 320" in problems(coco(tmp_path / "y", [{"category_id": 20, "segmentation": runs}]))


def test_polygons_agree_with_pycocotools_on_a_rectangle(tmp_path):
    tools = pytest.importorskip("pycocotools.mask", reason="the other implementation: pip install '.[coco]'")
    write_masks(coco(tmp_path, [polygon(BOX)]))
    theirs = tools.decode(tools.frPyObjects([BOX], 16, 20))[..., 0]
    assert (read(tmp_path / "masks/a.png") == theirs).all()


def test_without_pycocotools_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    runs = {"size": [16, 20], "counts": [320]}
    assert 'pip install ".[coco]"' in problems(coco(tmp_path, [{"category_id": 20, "segmentation": runs}]))


def test_a_coco_file_a_split_finds_its_own_images(tmp_path):
    coco(tmp_path, [polygon(BOX)], "annotations/instances_train.json", "images/train/a.png")
    coco(tmp_path, [polygon(SMALL)], "annotations/instances_val.json", "images/val/a.png")
    assert write_masks(tmp_path)[1] == 2
    assert [read(tmp_path / f"masks/{split}/a.png").sum() for split in ("train", "val")] == [100, 4]


def test_coco_files_that_number_their_categories_differently_agree_by_name(tmp_path):
    coco(tmp_path, [polygon(BOX, 20)], "annotations/train.json", "images/train/a.png")
    swapped = [{"id": 30, "name": "road"}, {"id": 20, "name": "car"}]
    coco(tmp_path, [polygon(BOX, 30)], "annotations/val.json", "images/val/a.png", categories=swapped)
    assert write_masks(tmp_path)[2] == ["background", "car", "road"]
    assert [read(tmp_path / f"masks/{split}/a.png").max() for split in ("train", "val")] == [2, 2]


def test_a_coco_file_among_its_images(tmp_path):
    for split in ("train", "valid"):
        coco(tmp_path, [polygon(BOX)], f"{split}/_annotations.coco.json", f"{split}/a.png")
    write_masks(tmp_path)
    assert find_pairs(tmp_path).pairs == [(f"{split}/a.png", f"masks/{split}/a.png") for split in ("train", "valid")]


def test_labelme_polygons_and_rectangles(tmp_path):
    labelme(tmp_path, [shape(BOX, "road"), shape([4, 4, 6, 6], "car", "rectangle")])
    labelme(tmp_path, [], "b")
    written = write_masks(tmp_path)
    assert written == ("labelme JSON", 2, ["background", "car", "road"])
    assert (read(tmp_path / "masks/a.png") == expected(box=2, small=1)).all()
    assert not read(tmp_path / "masks/b.png").any()
    assert find_pairs(tmp_path).pairs == [("a.jpg", "masks/a.png"), ("b.jpg", "masks/b.png")]


def test_the_objects_of_two_labelme_files_of_one_image_are_both_drawn(tmp_path):
    labelme(tmp_path, [shape(BOX, "road")])
    (tmp_path / "a2.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": [shape(SMALL, "car")]}))
    assert write_masks(tmp_path)[1] == 1
    assert (read(tmp_path / "masks/a.png") == expected(box=2, small=1)).all()


@pytest.mark.parametrize("folder", ["labels", "images"])
def test_yolo_polygons(tmp_path, folder):
    yolo(tmp_path, [f"0 {normal(BOX)}", f"1 {normal(SMALL)}"], folder)
    assert write_masks(tmp_path, ["road", "car"]) == ("YOLO", 1, ["background", "road", "car"])
    assert (read(tmp_path / "masks/a.png") == expected()).all()


def test_yolo_needs_names_for_its_numbers(tmp_path):
    yolo(tmp_path, [f"0 {normal(BOX)}"])
    assert "by --classes, or in" in problems(tmp_path)
    (tmp_path / "classes.txt").write_text("road\n")
    assert write_masks(tmp_path)[2] == ["background", "road"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "labels/a.txt:2 (road): it has 2 corners; expected three or more"),
        ("5 0 0 0 1 1 1", "labels/a.txt:2: class 5; expected 0..1"),
        ("road 0 0", "expected 'class x y x y x y ...'"),
        ("0 0 0 0 1 1 1.2", "labels/a.txt:2 (road): its corner (20, 19.2) is outside the image of 20 x 16"),
    ],
)
def test_a_wrong_line_of_yolo_is_named(tmp_path, line, message):
    assert message in problems(yolo(tmp_path, [f"0 {normal(BOX)}", line]), ["road", "car"])


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([polygon([0, 0, 30, 0, 30, 9])], "annotation 0 (road): its corner (30, 0) is outside the image of 20 x 16"),
        (
            [polygon([0, 0, 4, 4, 4, 0, 0, 4])],
            "images/a.png: annotations/instances.json: annotation 0 (road): it crosses itself near (2.0, 2.0)",
        ),
        ([polygon(BOX, 99)], "annotation 0 has the category 99, which has no name"),
        ([{"category_id": 20, "bbox": [1, 2, 3, 4]}], "it has no polygon"),
        ([], "holds no object at all"),
    ],
)
def test_a_wrong_object_of_coco_is_named_and_nothing_is_written(tmp_path, annotations, message):
    assert message in problems(coco(tmp_path, annotations))


def test_a_category_that_no_class_names_is_refused(tmp_path):
    coco(tmp_path, [polygon(BOX), polygon(SMALL, 30)])
    assert "the categories car are not in --classes road" in problems(tmp_path, ["road"])
    assert write_masks(tmp_path, ["car", "road"])[2] == ["background", "car", "road"]


def test_all_wrong_objects_are_named_at_once(tmp_path):
    text = problems(coco(tmp_path, [polygon([0, 0, 30, 0, 30, 9]), polygon(BOX), polygon([1, 1])]))
    assert "annotation 0 (road)" in text
    assert "annotation 2 (road): it has 1 corners" in text


def test_files_that_hold_nothing_to_read_are_refused(tmp_path):
    image(tmp_path / "a.jpg")
    assert "0 other JSON files" in problems(tmp_path)
    (tmp_path / "a.json").write_text("")
    assert "a.json is not JSON (it is empty)" in problems(tmp_path)
    (tmp_path / "a.json").write_text("[1]")
    assert "1 other JSON files" in problems(tmp_path)
    (tmp_path / "a.json").unlink()
    assert "image a.png is missing" in problems(
        coco(tmp_path, [polygon(BOX)], images=[{"id": 7, "file_name": "c/a.png"}])
    ).replace("c/", "")


def test_masks_are_never_overwritten(tmp_path):
    write_masks(coco(tmp_path, [polygon(BOX)]))
    with pytest.raises(DataError, match="nothing is overwritten"):
        write_masks(tmp_path)


def test_two_images_with_one_mask_are_refused(tmp_path):
    labelme(tmp_path, [shape(BOX, "road")])
    image(tmp_path / "images/a.png", size=(16, 20))
    (tmp_path / "images/b.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape(BOX, "road")]}))
    assert "would have the same mask masks/a.png" in problems(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "more", "message"),
    [
        ([{"id": 1}], {}, "instances.json: a part is not as its format says (KeyError: 'category_id')"),
        ([polygon(BOX)], {"images": 3}, "instances.json: a part is not as its format says (TypeError"),
        ([polygon(["x"] * 6)], {}, "annotation 0 (road): its corners are no pairs of numbers"),
        ([{"category_id": 20, "segmentation": {"counts": "1"}}], {}, "annotation 0 (road): lacks 'size'"),
    ],
)
def test_what_is_not_as_the_format_says_is_named(tmp_path, annotations, more, message):
    assert message in problems(coco(tmp_path, annotations, **more))


def test_an_image_of_another_size_than_the_annotated_one_is_named(tmp_path):
    coco(tmp_path, [polygon(BOX)])
    image(tmp_path / "images/a.png", size=(32, 40))
    assert problems(tmp_path) == f"{tmp_path}/images/a.png is 32 x 40 (H x W), and was annotated as 16 x 20"
