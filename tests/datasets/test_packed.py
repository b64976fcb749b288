"""A packed data set gives what its files give, bit for bit, and says what is wrong with it."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset, make_loader
from datasets.packed import PackedDataset
from datasets.samplers import PositionBatches
from datasets.stream import TrainStream
from datasets.transforms import TrainTransform
from scripts import pack_dataset

TRANSFORMS = {
    "plain": {"crop_size": (24, 40)},
    "padded": {"crop_size": (70, 90), "scale_range": (0.5, 0.9)},
    "all": {"crop_size": (20, 20), "cat_max_ratio": 0.4, "photometric": True},
}


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Packs a data set into shards of two or three samples."""
    monkeypatch.setattr(pack_dataset, "SHARD", 30_000)

    def run(dataset):
        pack_dataset.Packer(dataset, tmp_path / "packed").run()
        return PackedDataset(dataset, tmp_path / "packed")

    return run


def files(streets, split="train"):
    return build_dataset("camvid", streets, f"{split}.txt")


def mixed(root):
    """Three samples of different sizes, the second without label, the last in another format."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for name, size in (("a.png", (9, 7)), ("b.png", (5, 8)), ("c.jpg", (16, 16))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name)
        Image.fromarray(rng.integers(0, 3, size, dtype=np.uint8)).save(root / f"{name[0]}_y.png")
    (root / "list.txt").write_text("a.png a_y.png\nb.png\nc.jpg c_y.png\n")
    return build_dataset("list", root, "list.txt", class_names=["x", "y", "z"])


@pytest.mark.parametrize("options", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_stream_is_that_of_the_files(streets, pack, options):
    dataset = files(streets)
    packed = pack(dataset)
    assert len(list(packed.folder.glob("*.bin"))) > 2
    for seed in (0, 5):
        from_files, from_pack = (TrainStream(each, TrainTransform(**options), seed) for each in (dataset, packed))
        for position in (0, 1, 2, 7, 8, 30, 1001):
            expected, found = from_files[position], from_pack[position]
            assert found["name"] == expected["name"]
            assert torch.equal(found["image"], expected["image"])
            assert torch.equal(found["label"], expected["label"])


def test_whole_samples_of_any_size_with_and_without_label(tmp_path, pack):
    dataset = mixed(tmp_path / "data")
    packed = pack(dataset)
    for index in range(3):
        expected, found = dataset[index], packed[index]
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["label"], expected["label"])
    assert packed.load_label(1) is None
    assert (packed[1]["label"] == 255).all()


def test_all_else_is_the_data_sets_own(streets, pack):
    dataset = files(streets, "val")
    packed = pack(dataset)
    assert len(packed) == len(dataset) == 5
    assert (packed.names, packed.files, packed.class_names) == (dataset.names, dataset.files, dataset.class_names)
    assert (packed.palette == dataset.palette).all()
    assert packed.to_raw_ids(np.array([0, 255], np.uint8)).tolist() == [0, 11]


@pytest.mark.filterwarnings("error")
def test_pixels_are_mapped_read_only_and_samples_own_theirs(streets, pack):
    packed = pack(files(streets))
    image, label = packed.open(3)
    assert np.shares_memory(image, packed.load_image(3))
    assert np.shares_memory(label, packed.load_label(3))
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0
    before = packed[3]["label"].clone()
    packed[3]["label"].fill_(9)
    assert torch.equal(packed[3]["label"], before)


def test_processes_map_the_files_themselves(streets, pack):
    packed = pack(files(streets))
    packed.load(0)
    content = pickle.dumps(packed)
    assert len(content) < 20_000  # of 8 x 12 KiB of pixels
    assert (pickle.loads(content).load_image(7) == packed.load_image(7)).all()
    stream = TrainStream(packed, TrainTransform((16, 24)), seed=0)
    for step, batch in enumerate(make_loader(stream, PositionBatches(0, 2, 4), workers=2)):
        assert torch.equal(batch["image"], torch.stack([stream[4 * step + i]["image"] for i in range(4)]))


def change_index(folder, **values):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_key(folder):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    del index["shards"]
    path.write_text(json.dumps(index))


def truncate(folder):
    shard = folder / "00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "index.json is missing: not packed, or not completely"),
        (
            lambda folder: (folder / "index.json").write_text("{"),
            r"index.json is not an index of format version 1 \(JSON: Invalid JSON",
        ),
        (lambda folder: (folder / "index.json").write_text("[]"), "index.json is not an index of format version 1"),
        (drop_key, "index.json is not an index of format version 1 .*shards: Field required"),
        (
            lambda folder: change_index(folder, version=7),
            "index.json is not an index of format version 1 .*version: Input should be 1",
        ),
        (lambda folder: (folder / "00001.bin").unlink(), "00001.bin is missing"),
        (truncate, r"size of 00001.bin in bytes: 24575; expected 24576"),
    ],
)
def test_a_damaged_folder_is_refused(streets, pack, spoil, message):
    dataset = files(streets)
    folder = pack(dataset).folder
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        PackedDataset(dataset, folder)
    assert str(folder) in str(error.value)
    assert f"pack_dataset.py CONFIG --out {folder.parent} --splits packed" in str(error.value)


def lines(root, *chosen):
    (root / "list.txt").write_text("".join(f"{line}\n" for line in chosen))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda root: None, {"class_names": ["x", "y", "w"]}, r"class_names.*'z'.*expected.*'w'"),
        (lambda root: None, {"id_table": [0, 1, 2, 2]}, r"ids in index.json: .*\[2, 2\], \[255, 255\].*\[3, 2\]"),
        (lambda root: lines(root, "a.png a_y.png"), {}, "number of samples in index.json: 3; expected 1"),
        (lambda root: lines(root, "b.png", "a.png a_y.png", "c.jpg c_y.png"), {}, "sample 0.*'a'.*expected.*'b'"),
        (lambda root: lines(root, "a.png b_y.png", "b.png", "c.jpg c_y.png"), {}, "sample 0.*a_y.*expected.*b_y"),
        (lambda root: lines(root, "a.png a_y.png", "b.png b_y.png", "c.jpg c_y.png"), {}, "sample 1.*expected.*b_y"),
        (lambda root: (root / "c.jpg").write_bytes(b"other"), {}, r"sample 2.*'source_bytes'.*expected.*\[5, "),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, pack, change, options, message):
    root = tmp_path / "data"
    folder = pack(mixed(root)).folder
    change(root)
    changed = build_dataset("list", root, "list.txt", **({"class_names": ["x", "y", "z"]} | options))
    with pytest.raises(ValueError, match=message):
        PackedDataset(changed, folder)


def test_a_folder_packed_by_other_colours_or_another_range_is_refused(tmp_path, pack):
    colors = {(0, 0, 0): 0, (1, 1, 1): 1, (2, 2, 2): 2}
    mixed(tmp_path / "data")

    def build(**options):
        return build_dataset("list", tmp_path / "data", "list.txt", class_names=["x", "y", "z"], **options)

    folder = pack(build(color_table=colors, image_range=(0, 4095))).folder
    PackedDataset(build(color_table=colors, image_range=(0, 4095)), folder)
    with pytest.raises(ValueError, match=r"image_range in index.json: \[0.0, 4095.0\]; expected \[0, 1023\]"):
        PackedDataset(build(color_table=colors, image_range=(0, 1023)), folder)
    with pytest.raises(ValueError, match="colors in index.json"):
        PackedDataset(build(color_table=colors | {(3, 3, 3): 255}, image_range=(0, 4095)), folder)


def test_damage_that_no_size_tells_is_found_by_reading_all(tmp_path, pack):
    dataset = mixed(tmp_path / "data")
    packed = pack(dataset)
    assert [packed.find_damage(index, sources=True) for index in range(3)] == [None] * 3
    label = dataset.files[2][1]
    label.write_bytes(label.read_bytes()[:-1] + b"?")
    assert packed.find_damage(2, sources=False) is None
    assert "c_y.png has changed since it was packed" in packed.find_damage(2, sources=True)
    shard = packed.folder / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[9 * 7 * 4] ^= 1  # the first byte of the second sample
    shard.write_bytes(content)
    found = [PackedDataset(dataset, packed.folder).find_damage(index, sources=False) for index in range(3)]
    assert (found[0], found[2]) == (None, None)
    assert "00000.bin: the pixels of b have changed since they were packed" in found[1]
