from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset
from scripts.preparation.layouts import find_lists, segnet_split
from scripts.prepare_lists import main


def real_frames() -> list[str]:
    """The names of the 701 labelled frames of CamVid."""
    # 0016E5 is labelled once a second but for a gap and one frame that is late.
    seconds = [n for n in range(390, 8641, 30) if n <= 2400 or 4350 <= n <= 7920 or n >= 8190]
    names = [f"0001TP_{n:06d}" for n in range(6690, 10381, 30)]
    names += [f"0006R0_f{n:05d}" for n in range(930, 3931, 30)]
    names += [f"0016E5_{901 if n == 900 else n:05d}" for n in seconds]
    names += [f"0016E5_{n:05d}" for n in range(7959, 8160, 2)]
    return names + [f"Seq05VD_f{n:05d}" for n in range(0, 5101, 30)]


def test_segnets_split_has_its_published_counts():
    frames = real_frames()
    assert len(frames) == 701
    assert Counter(map(segnet_split, frames)) == {"train": 367, "val": 101, "test": 233}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001TP_006690", "train"),
        ("0001TP_008520", "train"),
        ("0001TP_008550", "test"),
        ("0001TP_010380", "test"),
        ("0006R0_f03930", "train"),
        ("0016E5_07920", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_08159", "val"),
        ("0016E5_08190", "train"),
        ("Seq05VD_f00000", "test"),
        ("holiday_0001", None),
    ],
)
def test_segnets_split_at_its_borders(name, split):
    assert segnet_split(name) == split


def save(path: Path, label=None) -> None:
    """A picture of 4 x 6 pixels, or a label file that holds one id, and 1 and 2 in its last rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((4, 6, 3), np.uint8) if label is None else np.full((4, 6), label, np.uint8)
    if label is not None:
        array[-2:] = [[1], [2]]
    Image.fromarray(array).save(path)


def make_ade20k(root: Path) -> None:
    for split, name, label in (("training", "ADE_train_00000001", 150), ("validation", "ADE_val_00000001", 0)):
        save(root / f"ADEChallengeData2016/images/{split}/{name}.jpg")
        save(root / f"ADEChallengeData2016/annotations/{split}/{name}.png", label)


def make_voc(root: Path, aug: bool = True, listed: bool = True) -> Path:
    """Two images of VOC's train, one of val, one that has only a label of SBD, and one without labels."""
    folder = root / "VOCdevkit/VOC2012"
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    if listed:
        lists["trainaug"] = ["2008_000002", *lists["train"]]
    for split, names in lists.items():
        (folder / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name in ("2007_000032", "2007_000033", "2007_000039", "2008_000002", "2012_004331"):
        save(folder / f"JPEGImages/{name}.jpg")
    for name in lists["trainval"]:
        save(folder / f"SegmentationClass/{name}.png", 255)
    for name in ("2007_000032", "2007_000033", "2008_000002") if aug else ():
        save(folder / f"SegmentationClassAug/{name}.png", 20)
    return folder


def make_coco_stuff(root: Path, images: str = "", labels: str = "stuffthingmaps_trainval2017/") -> None:
    for split, name in (("train", "000000000009"), ("val", "000000000139")):
        save(root / f"{images}{split}2017/{name}.jpg")
        save(root / f"{labels}{split}2017/{name}.png", 181)


def lines(root: Path, split: str) -> list[str]:
    return (root / f"{split}.txt").read_text().splitlines()


def test_ade20k_as_its_archive_unpacks(tmp_path, capsys):
    make_ade20k(tmp_path)
    assert main(["ade20k", str(tmp_path)]) == 0
    line = "ADEChallengeData2016/images/{0}/{1}.jpg ADEChallengeData2016/annotations/{0}/{1}.png"
    assert lines(tmp_path, "train") == [line.format("training", "ADE_train_00000001")]
    assert lines(tmp_path, "val") == [line.format("validation", "ADE_val_00000001")]
    output = capsys.readouterr().out
    assert [row.split()[:4] for row in output.splitlines()[:2]] == [
        ["train", "1", "of", "20210"],
        ["val", "1", "of", "2000"],
    ]
    assert build_dataset("ade20k", tmp_path, "train.txt").load(0)[1].max() == 149


@pytest.mark.parametrize("listed", [True, False], ids=["trainaug.txt", "no trainaug.txt"])
def test_voc_with_sbds_labels(tmp_path, listed, capsys):
    make_voc(tmp_path, listed=listed)
    assert main(["voc", str(tmp_path)]) == 0
    own = "VOCdevkit/VOC2012/JPEGImages/{0}.jpg VOCdevkit/VOC2012/SegmentationClass/{0}.png"
    train = [own.format("2007_000032"), own.format("2007_000039")]
    added = own.replace("Class/", "ClassAug/").format("2008_000002")
    assert lines(tmp_path, "train") == train
    assert lines(tmp_path, "val") == [own.format("2007_000033")]
    assert lines(tmp_path, "trainaug") == ([added, *train] if listed else [*train, added])
    counts = [row.split()[:4] for row in capsys.readouterr().out.splitlines()[:3]]
    assert counts == [["train", "2", "of", "1464"], ["trainaug", "3", "of", "10582"], ["val", "1", "of", "1449"]]
    labels = build_dataset("voc", tmp_path, "trainaug.txt")
    assert {name: int(labels.load(i)[1][0, 0]) for i, name in enumerate(labels.names)} == {
        "2007_000032": 255,
        "2007_000039": 255,
        "2008_000002": 20,
    }


def test_voc_alone_has_no_trainaug(tmp_path):
    make_voc(tmp_path, aug=False, listed=False)
    assert main(["voc", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["train.txt", "val.txt"]


def test_a_list_of_sbds_images_without_its_labels_is_one_problem(tmp_path, capsys):
    make_voc(tmp_path, aug=False)
    assert main(["voc", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "SegmentationClassAug has none (SBD's own .mat files are not read)" in errors
    assert "problems: 1; nothing was written" in errors


def test_an_image_of_vocs_val_in_trainaug_is_named(tmp_path, capsys):
    folder = make_voc(tmp_path)
    with open(folder / "ImageSets/Segmentation/trainaug.txt", "a") as file:
        file.write("2007_000033\n")
    assert main(["voc", str(tmp_path)]) == 1
    assert "trainaug.txt has 2007_000033, which is also in val.txt" in capsys.readouterr().err


def test_without_vocs_own_lists_nothing_is_written(tmp_path, capsys):
    """Without val.txt the images of val would be in trainaug."""
    (make_voc(tmp_path, listed=False) / "ImageSets/Segmentation/val.txt").unlink()
    assert main(["voc", str(tmp_path)]) == 1
    assert "ImageSets/Segmentation/val.txt is missing" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.txt"))


def test_what_vocs_lists_name_and_its_folders_lack_is_named(tmp_path):
    folder = make_voc(tmp_path)
    (folder / "JPEGImages/2007_000032.jpg").unlink()
    (folder / "SegmentationClass/2007_000032.png").unlink()
    (folder / "SegmentationClass/2007_000033.png").unlink()
    _, problems = find_lists("voc", tmp_path)
    assert len(problems) == 3
    assert problems[0].endswith("train.txt has 2007_000032, which has no image and no label")
    assert problems[1].endswith("SegmentationClassAug/2007_000032.png: has no image")
    assert problems[2].endswith("JPEGImages/2007_000033.jpg: has no label")


@pytest.mark.parametrize("folders", [("", "stuffthingmaps_trainval2017/"), ("images/", "annotations/")])
def test_coco_stuff_as_its_archives_unpack(tmp_path, folders, capsys):
    make_coco_stuff(tmp_path, *folders)
    save(tmp_path / f"{folders[1]}train2017/000000000009_labelTrainIds.png", 170)
    assert main(["coco_stuff", str(tmp_path)]) == 0
    images, labels = folders
    assert lines(tmp_path, "train") == [f"{images}train2017/000000000009.jpg {labels}train2017/000000000009.png"]
    assert lines(tmp_path, "val") == [f"{images}val2017/000000000139.jpg {labels}val2017/000000000139.png"]
    assert "118287" in capsys.readouterr().out
    assert build_dataset("coco_stuff", tmp_path, "val.txt").load(0)[1].max() == 170


@pytest.mark.parametrize(
    ("name", "make", "file", "message"),
    [
        ("ade20k", make_ade20k, "annotations/training/ADE_train_00000001.png", "ADE_train_00000001.jpg: has no label"),
        ("coco_stuff", make_coco_stuff, "val2017/000000000139.jpg", "val2017/000000000139.png: has no image"),
    ],
)
def test_half_a_pair_is_named_and_nothing_is_written(tmp_path, capsys, name, make, file, message):
    make(tmp_path)
    next(tmp_path.glob(f"**/{file}")).unlink()
    assert main([name, str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize(
    ("name", "layout"), [("ade20k", "ADEChallengeData2016/"), ("voc", "VOCdevkit/VOC2012/"), ("coco_stuff", "stuffth")]
)
def test_an_empty_folder_is_told_the_layout(tmp_path, capsys, name, layout):
    assert main([name, str(tmp_path)]) == 1
    assert layout in capsys.readouterr().err
