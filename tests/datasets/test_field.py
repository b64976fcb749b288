"""ADE20K, PASCAL VOC and COCO-Stuff: their tables against those of others, and their files."""

from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from datasets import DATASETS, SegDataset
from datasets.base import read_classes

# sha256 of the names of mmsegmentation 1.2.2, joined by commas, without white space at their ends.
PUBLISHED_NAMES = {
    "ade20k": "ba644262c15afe51fbdc3d84fbeb6ae1af70169aae08d7f3f9a29984eda138ee",
    "voc": "a2cc265590d92f24d70e049808602ac117eb3068ee323cdc56cd80ce10c1321f",
    "coco_stuff": "3ea13afa1dfb53a2a1eb41c89cdfa8ec91030a71735fb4594f251b6d96a25df6",
}
# sha256 of the bytes r, g, b of its colours.
PUBLISHED_COLOURS = {
    "ade20k": "ce475c9151035eff51f4cf27fd7d906959b1480f6d15b9423ae2417c1b23a0ed",
    "voc": "46a99c0d1f42c3d076ae0d49ac616fec5d6754de21e539cee9f4ebcbf013acae",
}


def make(root, name: str, label, mode: str = "L") -> SegDataset:
    label = np.array(label, np.uint8)
    Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(root / "x.jpg")
    picture = Image.frombytes(mode, label.shape[::-1], label.tobytes())
    if mode == "P":
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    picture.save(root / "x.png")
    (root / "list.txt").write_text("x.jpg x.png\n")
    return DATASETS[name](root, "list.txt")


@pytest.mark.parametrize(("name", "count"), [("ade20k", 150), ("voc", 21), ("coco_stuff", 171)])
def test_names_and_colours_are_those_of_published_networks(tmp_path, name, count):
    dataset = make(tmp_path, name, [[1]])
    assert dataset.num_classes == len(set(dataset.class_names)) == count
    assert sha256(",".join(dataset.class_names).encode()).hexdigest() == PUBLISHED_NAMES[name]
    if name in PUBLISHED_COLOURS:
        assert sha256(dataset.palette.tobytes()).hexdigest() == PUBLISHED_COLOURS[name]
    else:
        assert len(np.unique(dataset.palette, axis=0)) == count


def test_vocs_classes_are_torchvisions():
    theirs = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert read_classes("voc")[0] == ["background", *theirs[1:]]


def test_the_ids_of_coco_stuffs_things_are_those_of_torchvisions_coco_minus_one():
    theirs = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by COCO's id; N/A where it has no pixels
    names, _, ids = read_classes("coco_stuff")
    things = {raw: names[train] for raw, train in ids.items() if raw < 91}
    assert things == {i - 1: name for i, name in enumerate(theirs) if i > 0 and name != "N/A"}
    assert len(things) == 80


def test_coco_stuffs_stuff_follows_its_things_by_alphabet():
    names, _, ids = read_classes("coco_stuff")
    stuff = [names[ids[raw]] for raw in range(91, 182)]
    assert stuff == sorted(stuff)
    assert stuff == names[80:]


def test_ade20ks_zero_is_void_and_each_class_has_its_id_minus_one(tmp_path):
    dataset = make(tmp_path, "ade20k", [[0, 1, 2, 13, 150]])
    label = dataset.load(0)[1]
    assert label.tolist() == [[255, 0, 1, 12, 149]]
    assert [dataset.class_names[train] for train in label[0, 1:]] == ["wall", "building", "person", "flag"]


def test_vocs_palette_files_hold_ids_whatever_their_colours(tmp_path):
    assert make(tmp_path, "voc", [[0, 1, 15, 20, 255]], "P").load(0)[1].tolist() == [[0, 1, 15, 20, 255]]


def test_coco_stuffs_ids_close_their_gaps(tmp_path):
    dataset = make(tmp_path, "coco_stuff", [[0, 10, 12, 89, 91, 181, 255]])
    assert dataset.load(0)[1].tolist() == [[0, 10, 11, 79, 80, 170, 255]]


@pytest.mark.parametrize(
    ("name", "raw"),
    [("ade20k", 151), ("ade20k", 255), ("voc", 21)] + [("coco_stuff", raw) for raw in (11, 25, 68, 90, 182, 254)],
)
def test_other_ids_are_errors(tmp_path, name, raw):
    with pytest.raises(ValueError, match=rf"x\.png holds the ids \[{raw}\]"):
        make(tmp_path, name, [[1, raw]]).load(0)


@pytest.mark.parametrize(
    ("name", "train", "raw"),
    [
        ("ade20k", [0, 149, 255], [1, 150, 0]),
        ("voc", [0, 20, 255], [0, 20, 255]),
        ("coco_stuff", [0, 11, 80, 170, 255], [0, 12, 91, 181, 255]),
    ],
)
def test_predictions_are_written_in_the_ids_of_the_label_files(tmp_path, name, train, raw):
    dataset = make(tmp_path, name, [[1]])
    assert dataset.to_raw_ids(np.array(train, np.uint8)).tolist() == raw
    classes = np.arange(dataset.num_classes, dtype=np.uint8)
    assert (dataset.id_table[dataset.to_raw_ids(classes)] == classes).all()
