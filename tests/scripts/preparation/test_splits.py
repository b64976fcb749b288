import pytest

from datasets.sequences import sequence_of
from scripts.preparation.pairs import Pair
from scripts.preparation.problems import DataError
from scripts.preparation.splits import divide


def pairs(*images):
    return [Pair(image, image) for image in images]


def test_the_split_of_the_folders_is_used(tmp_path):
    splits, how = divide(tmp_path, pairs("images/training/a.png", "images/validation/b.png", "test/c.png"), 0.5, 0)
    assert {split: [pair.image for pair in part] for split, part in splits.items()} == {
        "train": ["images/training/a.png"], "val": ["images/validation/b.png"], "test": ["test/c.png"],
    }  # fmt: skip
    assert how == "split by the folders' names"


def test_without_val_a_share_of_train_is_held_out(tmp_path):
    splits, how = divide(tmp_path, pairs("test/z.png", *(f"train/{name}.png" for name in "abcd")), 0.25, 0)
    assert {split: len(part) for split, part in splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert "split by image" in how


def test_the_lists_of_pascal_voc_are_used(tmp_path):
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("b\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    splits, how = divide(tmp_path, pairs("JPEGImages/a.jpg", "JPEGImages/b.jpg"), 0.5, 0)
    assert [pair.image for pair in splits["train"]] == ["JPEGImages/b.jpg"]
    assert "ImageSets/Segmentation" in how


@pytest.mark.parametrize("seed", range(5))
def test_no_video_is_on_both_sides(tmp_path, seed):
    images = [f"v{video}_{frame:04d}.png" for video in "abcdefghij" for frame in range(3)]
    splits, how = divide(tmp_path, pairs(*images), 0.2, seed)
    sides = [{sequence_of(pair.image) for pair in splits[split]} for split in ("train", "val")]
    assert not sides[0] & sides[1]
    assert len(splits["val"]) == 6
    assert f"split by video: 2 of 10 videos are in val; 6 of 30 images in val (20%, --val 0.2), --seed {seed}" == how


def test_names_without_videos_are_split_by_image_and_it_is_said(tmp_path):
    images = [f"{number:03d}.png" for number in range(10)]
    splits, how = divide(tmp_path, pairs(*images), 0.2, 0)
    assert [len(splits[split]) for split in ("train", "val")] == [8, 2]
    assert how.startswith("names tell no videos apart: split by image; 2 of 10")
    assert divide(tmp_path, pairs(*images), 0.2, 0)[0] == splits


def test_each_side_gets_an_image_however_small_the_share(tmp_path):
    for share in (0.001, 0.999):
        splits, _ = divide(tmp_path, pairs("a.png", "b.png", "c.png"), share, 0)
        assert splits["train"]
        assert splits["val"]


def test_images_in_no_split_are_named(tmp_path):
    with pytest.raises(DataError, match="1 images are in no folder named train, val or test, as others are: other/c"):
        divide(tmp_path, pairs("train/a.png", "val/b.png", "other/c.png"), 0.2, 0)


def test_one_image_cannot_be_divided(tmp_path):
    with pytest.raises(DataError, match="expected two or more"):
        divide(tmp_path, pairs("a.png"), 0.2, 0)
