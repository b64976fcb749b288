import shutil

import pytest

from scripts.preparation.pairs import Pair, find_pairs
from scripts.preparation.problems import DataError
from tests.scripts.preparation.folders import halves, image, masked, save

NAMES = ["a", "b"]


def problems(root, **options):
    with pytest.raises(DataError) as error:
        find_pairs(root, **options)
    return error.value.problems


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.jpg", "labels/{}.png"),
        ("images/{}.tif", "annotations/{}_mask.png"),
        ("img/{}.webp", "ann/{}.png"),
        ("Images/{}.bmp", "Masks/{}.bmp"),
        ("images/train/{}.png", "masks/train/{}.png"),
        ("images/training/{}.jpg", "annotations/training/{}.png"),
        ("train/images/{}.jpg", "train/labels/{}.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("train/{}.jpg", "train/{}.png"),
        ("train/{}.png", "train/{}_mask.png"),
        ("train/{}_sat.jpg", "train/{}_mask.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("leftImg8bit/train/ulm/{}_leftImg8bit.png", "gtFine/train/ulm/{}_gtFine_labelIds.png"),
        ("{}.jpg", "{}.png"),
        ("{}.png", "{}_L.png"),
        ("street/{}.jpg", "masks/street/{}.png"),
        ("scenes/one/img/{}_L.jpg", "scenes/one/ann/{}_L.png"),
    ],
)
def test_each_usual_layout_is_found_without_a_flag(tmp_path, images, labels):
    masked(tmp_path, images, labels, NAMES)
    found = find_pairs(tmp_path)
    assert found.pairs == [Pair(images.format(name), labels.format(name)) for name in NAMES]


def test_cityscapes_other_files_are_not_masks(tmp_path):
    masked(tmp_path, "leftImg8bit/val/ulm/{}_leftImg8bit.png", "gtFine/val/ulm/{}_gtFine_labelIds.png", NAMES)
    for kind in ("color", "instanceIds", "labelTrainIds"):
        save(tmp_path / f"gtFine/val/ulm/a_gtFine_{kind}.png", halves())
    assert [pair.label for pair in find_pairs(tmp_path).pairs] == [
        f"gtFine/val/ulm/{name}_gtFine_labelIds.png" for name in NAMES
    ]


def test_the_lists_of_pascal_voc_leave_images_out(tmp_path):
    masked(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", NAMES)
    image(tmp_path / "JPEGImages/c.jpg")
    assert "JPEGImages/c.jpg" in problems(tmp_path)[0]
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\n")
    assert [pair.image for pair in find_pairs(tmp_path).pairs] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]


def test_pictures_in_other_folders_than_the_paired_images_are_not_used(tmp_path):
    masked(tmp_path, "VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClass/{}.png", NAMES)
    other = ["VOC2012/SegmentationObject/a.png", "preview.png"]
    for name in other:
        image(tmp_path / name)
    found = find_pairs(tmp_path)
    assert [pair.image for pair in found.pairs] == ["VOC2012/JPEGImages/a.jpg", "VOC2012/JPEGImages/b.jpg"]
    assert found.unused == other


def test_patterns_say_which_files_belong_together(tmp_path):
    masked(tmp_path, "in/x/{}.jpg", "out/x/{}_lbl.png", NAMES)
    masked(tmp_path, "in/y/{}.jpg", "out/y/{}_lbl.png", NAMES)
    found = find_pairs(tmp_path, "in/**/*.jpg", "out/{folder}/{stem}_lbl.png")
    assert found.pairs == [Pair(f"in/{f}/{n}.jpg", f"out/{f}/{n}_lbl.png") for f in "xy" for n in NAMES]
    assert "masks have no image: out/x/b_lbl.png, out/y/b_lbl.png" in str(
        problems(tmp_path, images="in/**/a.jpg", labels="out/{folder}/{stem}_lbl.png")
    )
    assert problems(tmp_path, images="in/x/*.jpg", labels="out/{stem}.png") == [
        f"--labels 'out/*.png' matches no file below {tmp_path}; expected a pattern relative to it"
    ]


def test_a_folder_with_two_sets_of_masks_is_refused_until_patterns_choose(tmp_path):
    masked(tmp_path, "images/{}.png", "masks/{}.png", NAMES)
    masked(tmp_path, "images/{}.png", "labels/{}.png", NAMES)
    message, _ = problems(tmp_path)
    assert message.startswith("images/a.png has several masks: labels/a.png, masks/a.png; ")
    assert message.endswith("or use --labels")
    assert find_pairs(tmp_path, "images/*.png", "labels/{stem}.png").pairs[0].label == "labels/a.png"


def test_what_has_no_partner_is_named(tmp_path):
    masked(tmp_path, "images/{}.png", "masks/{}.png", NAMES)
    image(tmp_path / "images/c.png")
    save(tmp_path / "masks/d.png", halves())
    masks, images = problems(tmp_path)
    assert "1 masks have no image: masks/d.png" in masks
    assert "1 images have no mask: images/c.png" in images
    (tmp_path / "masks/d.png").unlink()
    found = find_pairs(tmp_path, unlabelled=["images/*"])
    assert len(found.pairs) == 2
    assert found.unlabelled == ["images/c.png"]


def test_a_val_set_without_masks_is_refused(tmp_path):
    masked(tmp_path, "train/images/{}.png", "train/masks/{}.png", NAMES)
    image(tmp_path / "val/images/c.png")
    assert "1 images have no mask: val/images/c.png" in problems(tmp_path)[0]
    assert find_pairs(tmp_path, unlabelled=["val/**/*.png"]).unlabelled == ["val/images/c.png"]


def test_a_test_set_may_have_no_masks(tmp_path):
    masked(tmp_path, "train/images/{}.png", "train/masks/{}.png", NAMES)
    masked(tmp_path, "test/images/{}.png", "test/masks/{}.png", NAMES)
    (tmp_path / "test/masks/a.png").unlink()
    assert find_pairs(tmp_path).pairs[0] == Pair("test/images/a.png", None)
    shutil.rmtree(tmp_path / "test/masks")
    assert find_pairs(tmp_path).pairs[:2] == [Pair("test/images/a.png", None), Pair("test/images/b.png", None)]


def test_segnets_test_set_may_have_no_masks(tmp_path):
    masked(tmp_path, "train/{}.png", "trainannot/{}.png", NAMES)
    image(tmp_path / "test/c.png")
    image(tmp_path / "other/d.png")
    found = find_pairs(tmp_path)
    assert found.pairs[0] == Pair("test/c.png", None)
    assert found.unused == ["other/d.png"]


def test_two_masks_of_one_image_are_named(tmp_path):
    masked(tmp_path, "images/{}.png", "masks/{}.png", NAMES)
    for other in ("a_mask.png", "a.bmp"):
        save(tmp_path / "masks" / other, halves())
        named = ", ".join(sorted(["masks/a.png", f"masks/{other}"]))
        (message,) = problems(tmp_path)
        assert message.startswith(f"images/a.png has several masks: {named}; move all but one away")
        (tmp_path / "masks" / other).unlink()


def test_one_mask_of_two_images_is_named(tmp_path):
    masked(tmp_path, "images/{}.png", "masks/{}.png", NAMES)
    image(tmp_path / "images/a.jpg")
    assert "masks/a.png is the mask of several images: images/a.jpg, images/a.png" in problems(tmp_path)[0]


def test_a_folder_without_images_or_without_masks_is_refused(tmp_path):
    assert "holds no image" in problems(tmp_path)[0]
    masked(tmp_path, "images/{}.png", "masks/{}.png", NAMES)
    shutil.rmtree(tmp_path / "masks")
    (message,) = problems(tmp_path)
    assert "2 images, and no mask was found" in message
    assert "--to-masks" not in message
    (tmp_path / "images/a.json").write_text("{}")
    assert "where images/a.json holds polygons, --to-masks" in problems(tmp_path)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "images/*.png"}, "both --images and --labels"),
        ({"images": "images/*.png", "labels": "masks/*.png"}, "expected {stem}"),
        ({"images": "images/*.jpg", "labels": "masks/{stem}.png"}, "'images/*.jpg' matches no file"),
        ({"images": "masks/*.png", "labels": "masks/{stem}.png"}, "matches no image that is not a mask"),
        ({"unlabelled": ["nothing*"]}, "--unlabelled 'nothing*' matches no file"),
    ],
)
def test_a_wrong_pattern_is_an_error(tmp_path, options, message):
    masked(tmp_path, "images/{}.png", "masks/{}.png", NAMES)
    assert message in problems(tmp_path, **options)[0]
