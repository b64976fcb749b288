from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset
from datasets.base import SegDataset, read_list
from datasets.stream import TrainStream
from utils.names import VOID

NAMES, PALETTE, IDS = ("sky", "road"), ((0, 0, 255), (90, 90, 90)), {5: 0, 7: 1, 8: 1, 9: VOID}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def make(root: Path, count: int = 3) -> SegDataset:
    """Sample i is of the grey level i, so that a picture tells which sample it came from."""
    for i in range(count):
        save(root / f"x/{i}.png", np.full((4, 6, 3), i))
        save(root / f"y/{i}.png", np.full((4, 6), 5))
    (root / "list.txt").write_text("".join(f"x/{i}.png y/{i}.png\n" for i in range(count)))
    return SegDataset(root, "list.txt", NAMES, PALETTE, IDS)


def with_label(root: Path, label: np.ndarray) -> SegDataset:
    dataset = make(root, 1)
    save(root / "y/0.png", label)
    return dataset


def test_list_splits_on_spaces_or_one_tab_and_skips_blank_lines(tmp_path):
    (tmp_path / "list.txt").write_text("\n  a.png   b.png \nmy image.png\tmy label.png\n\t\nalone.png\r\n")
    assert read_list(tmp_path, "list.txt") == [
        ("a.png", "b.png"),
        ("my image.png", "my label.png"),
        ("alone.png", None),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("my image.png my label.png", r"list.txt:2: 4 fields.*by one tab"),
        ("a\tb\tc", "3 fields"),
        ("../a.png b.png", "'../a.png' leads out"),
        ("a.png x/../../b.png", "leads out"),
        ("/a.png b.png", "'/a.png' leads out"),
    ],
)
def test_list_refuses_bad_lines(tmp_path, line, message):
    (tmp_path / "list.txt").write_text(f"ok.png ok2.png\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path, "list.txt")


def test_missing_root_list_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_list(tmp_path / "nowhere", "list.txt")
    with pytest.raises(FileNotFoundError, match=r"absent.txt is missing"):
        read_list(tmp_path, "absent.txt")
    make(tmp_path)
    (tmp_path / "y/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the files.*y/1.png"):
        build_dataset("list", tmp_path, "list.txt", class_names=NAMES)


def test_empty_list_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="list.txt is empty"):
        read_list(tmp_path, "list.txt")


def test_load_maps_raw_ids_and_keeps_rgb_order(tmp_path):
    dataset = with_label(tmp_path, np.array([[5, 7, 8], [9, 5, 7]]))
    save(tmp_path / "x/0.png", np.tile(np.array([200, 100, 50]), (2, 3, 1)))
    image, label = dataset.load(0)
    assert image[0, 0].tolist() == [200, 100, 50]
    assert label.tolist() == [[0, 1, 1], [255, 0, 1]]
    assert image.dtype == label.dtype == np.uint8


def test_item_is_the_whole_sample_as_tensors(tmp_path):
    item = make(tmp_path)[2]
    assert item["image"].shape == (3, 4, 6)
    assert item["image"].dtype == item["label"].dtype == torch.uint8
    assert (item["image"] == 2).all()
    assert item["label"].shape == (4, 6)
    assert item["name"] == "2"


def test_unknown_raw_ids_are_named(tmp_path):
    dataset = with_label(tmp_path, np.array([[5, 6, 255]] * 4).repeat(2, axis=1))
    with pytest.raises(ValueError, match=r"y/0.png holds the ids \[6, 255\]; expected only the ids \[5, 7, 8, 9\]"):
        dataset.load(0)


def test_sizes_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x/0.png is 4 x 6.*y/0.png is 6 x 4"):
        with_label(tmp_path, np.full((6, 4), 5)).load(0)


def test_palette_label_is_read_as_indices(tmp_path):
    dataset = make(tmp_path, 1)
    label = Image.fromarray(np.full((4, 6), 7, np.uint8))
    label.putpalette([9] * 768)
    label.save(tmp_path / "y/0.png")
    assert (dataset.load(0)[1] == 1).all()


def test_colour_label_and_sixteen_bit_image_are_refused(tmp_path):
    dataset = with_label(tmp_path, np.zeros((4, 6, 3)))
    with pytest.raises(ValueError, match=r"y/0.png holds colours.*data.color_table="):
        dataset.load_label(0)
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "x/0.png")
    with pytest.raises(
        ValueError, match=r"x/0.png has 16 bits a channel, with values 1000\.\.1000.*data.image_range=\(0, 1023\)"
    ):
        dataset.load_image(0)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_off_is_refused_not_half_read(tmp_path, suffix):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    save(tmp_path / f"x.{suffix}", picture)
    save(tmp_path / "y.png", np.full((64, 64), 5))
    content = (tmp_path / f"x.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "list.txt").write_text(f"x.{suffix} y.png")
    dataset = SegDataset(tmp_path, "list.txt", NAMES, PALETTE, IDS)
    with pytest.raises(ValueError, match=rf"x.{suffix} cannot be decoded"):
        dataset.load(0)


def test_image_without_label_is_void(tmp_path):
    make(tmp_path, 2)
    (tmp_path / "list.txt").write_text("x/0.png y/0.png\nx/1.png\n")
    dataset = SegDataset(tmp_path, "list.txt", NAMES, PALETTE, IDS)
    assert dataset.load_label(1) is None
    assert (dataset[1]["label"] == 255).all()


def test_names_are_unique(tmp_path):
    for folder in "ab":
        save(tmp_path / f"{folder}/0.png", np.zeros((2, 2, 3)))
    save(tmp_path / "y.png", np.full((2, 2), 5))
    (tmp_path / "list.txt").write_text("a/0.png y.png\nb/0.png y.png\n")
    assert SegDataset(tmp_path, "list.txt", NAMES, PALETTE, IDS).names == ["a__0", "b__0"]
    (tmp_path / "list.txt").write_text("a/0.png y.png\na/0.png y.png\n")
    with pytest.raises(ValueError, match="lists the same image twice: a__0.png"):
        SegDataset(tmp_path, "list.txt", NAMES, PALETTE, IDS)


def test_two_images_that_differ_by_their_suffix_alone_have_different_names(tmp_path):
    """Their predictions would be written to one file."""
    for name in ("a/0.png", "a/0.bmp", "b/1.png"):
        save(tmp_path / name, np.zeros((2, 2, 3)))
    save(tmp_path / "y.png", np.full((2, 2), 5))
    (tmp_path / "list.txt").write_text("a/0.png y.png\na/0.bmp y.png\nb/1.png y.png\n")
    assert SegDataset(tmp_path, "list.txt", NAMES, PALETTE, IDS).names == ["a__0.png", "a__0.bmp", "b__1.png"]


def test_raw_ids_invert_the_table_with_the_lowest_of_several(tmp_path):
    dataset = make(tmp_path, 1)
    assert dataset.to_raw_ids(np.array([[0, 1, 255]], np.uint8)).tolist() == [[5, 7, 9]]
    with pytest.raises(ValueError, match=r"train ids \[2\]; expected 0..1 or 255"):
        dataset.to_raw_ids(np.array([[2]], np.uint8))


def test_id_table_tells_known_ignored_and_unknown(tmp_path):
    table = make(tmp_path, 1).id_table
    assert table.shape == (256,)
    assert table[[5, 7, 8, 9, 0, 255]].tolist() == [0, 1, 1, 255, 254, 254]


@pytest.mark.parametrize(
    ("palette", "ids", "message"),
    [
        (((0, 0, 0),), IDS, "palette of shape"),
        (((0, 0, 0), (0, 0, 256)), IDS, "palette of shape"),
        (PALETTE, {0: 0, 1: 2}, "maps 1 to 2"),
        (PALETTE, {0: 0, 65536: 1}, "maps 65536 to 1"),
        (PALETTE, {0: 0, -1: 255}, "maps -1 to 255"),
        (PALETTE, {0: 0, 1: 255}, r"id table has nothing for the train ids \[1\]"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, palette, ids, message):
    make(tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        SegDataset(tmp_path, "list.txt", NAMES, palette, ids)


def test_pictures_of_every_legal_kind_are_read_as_their_colours_are_stored(tmp_path):
    """Grey, palette, alpha and a colour said to be transparent, and 16 bits a channel by the stated range."""
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    indexed = Image.fromarray(grey)
    indexed.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    table = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
    grey_levels, pixels = np.stack([grey] * 3, axis=-1), tmp_path / "x/0.png"
    dataset = make(tmp_path, 1)

    def read(picture: Image.Image, **options) -> np.ndarray:
        picture.save(pixels, **options)
        return dataset.load_image(0)

    assert (read(Image.fromarray(grey)) == grey_levels).all()
    assert (read(Image.fromarray(grey), transparency=3) == grey_levels).all()
    assert (read(Image.fromarray(np.stack([grey, grey[::-1]], axis=-1))) == grey_levels).all()
    assert (read(indexed) == table[grey]).all()
    assert (read(indexed, transparency=5) == table[grey]).all()
    assert (read(Image.fromarray(colours), transparency=tuple(colours[0, 0].tolist())) == colours).all()
    assert (read(Image.fromarray(np.dstack([colours, grey]))) == colours).all()
    cv2.imwrite(str(pixels), colours[..., ::-1].astype(np.uint16) * 16)
    dataset.image_range = (0, 255 * 16)
    assert (dataset.load_image(0) == colours).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_labels_of_every_lossless_kind_keep_their_ids(tmp_path, suffix):
    dataset, raw = make(tmp_path, 1), np.array([[5, 7, 8], [9, 5, 7]], np.uint8)
    path = tmp_path / f"y.{suffix}"
    for bits in (None, 4) if suffix == "png" else (None,):  # a palette's indices are ids however few bits they have
        indexed = Image.fromarray(raw)
        indexed.putpalette([200, 100, 50] * 16)
        indexed.save(path, **({} if bits is None else {"bits": bits}))
        assert dataset.read_label(path).tolist() == [[0, 1, 1], [255, 0, 1]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("y.jpg", None),
        ("y.jp2", None),
        ("y.pgm", b"P5 2 2 9 \5\7\5\7"),
        ("y.pgm", b"P2 2 2 9\n5 7 5 7\n"),
        ("y.tif", None),
    ],
)
def test_labels_that_would_be_read_as_other_ids_are_refused(tmp_path, name, content):
    """Lossy compression, and levels that are stretched to 255: of at most 9 in the header, 5 would become 142."""
    dataset, path = make(tmp_path, 1), tmp_path / name
    if content is None:
        picture = Image.new("L", (8, 8), 5)
        picture.save(path, **({"compression": "jpeg"} if name == "y.tif" else {}))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} does not store ids exactly: .*save the original as PNG"):
        dataset.read_label(path)


def test_a_list_from_another_editor(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png b.png\r\nc.png d.png\r\n")
    assert read_list(tmp_path, "list.txt") == [("a.png", "b.png"), ("c.png", "d.png")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png ä.png".encode("latin-1"), "is not UTF-8 text"),
        ("a.png b.png".encode("utf-16"), "is not UTF-8 text"),
        (b"a.png b.png\n\0\0\0\0", "has a NUL byte"),
    ],
)
def test_a_list_that_is_no_text_is_named(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list.txt.*{message}"):
        read_list(tmp_path, "list.txt")


def test_links_may_lead_anywhere_and_loops_are_named(tmp_path):
    """Data sets are commonly linked into place; what a list names may not climb, what the owner links may."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    make(elsewhere, 1)
    root.mkdir()
    (root / "x").symlink_to(elsewhere / "x")
    (root / "y").symlink_to(elsewhere / "y")
    (root / "list.txt").write_text("x/0.png y/0.png\n")
    assert SegDataset(root, "list.txt", NAMES, PALETTE, IDS).load_image(0).shape == (4, 6, 3)
    (root / "x").unlink()
    (root / "x").symlink_to("x")
    assert SegDataset(root, "list.txt", NAMES, PALETTE, IDS).missing_files() == [root / "x/0.png"]
    with pytest.raises(FileNotFoundError, match=r"1 of the files .*broken links: x/0.png"):
        build_dataset("list", root, "list.txt", class_names=NAMES)
    (root / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError, match="loop is not a folder"):
        read_list(root / "loop", "list.txt")
    with pytest.raises(FileNotFoundError, match="loop is missing"):
        read_list(root, "loop")


def noise(image, label, rng):
    return image[:] + rng.integers(0, 100, image.shape, dtype=np.uint8), label


def test_each_epoch_of_the_stream_is_a_new_permutation(tmp_path):
    stream = TrainStream(make(tmp_path, 7), noise, seed=3)
    epochs = [[stream.index(epoch * 7 + i) for i in range(7)] for epoch in range(4)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 4


def test_stream_is_a_pure_function_of_seed_and_position(tmp_path):
    dataset = make(tmp_path, 5)
    forward = {p: TrainStream(dataset, noise, seed=3)[p]["image"] for p in range(12)}
    stream = TrainStream(dataset, noise, seed=3)
    for position in (11, 2, 7, 2, 0):
        assert torch.equal(stream[position]["image"], forward[position])
    other = TrainStream(dataset, noise, seed=4)
    assert any(other[p]["name"] != stream[p]["name"] for p in range(12))


def test_a_sample_is_augmented_anew_each_time_it_comes(tmp_path):
    stream = TrainStream(make(tmp_path, 1), noise, seed=0)
    assert not torch.equal(stream[0]["image"], stream[1]["image"])


def test_a_stream_of_distinct_epochs_repeats_after_them(tmp_path):
    """Five samples, two epochs: position 10 is position 0 again, and not position 5; before that nothing changes."""
    dataset = make(tmp_path, 5)
    endless, stream = (TrainStream(dataset, noise, seed=3, epochs=epochs) for epochs in (None, 2))
    assert (endless.period, stream.period) == (None, 10)
    for position, first in ((0, 0), (7, 7), (9, 9), (10, 0), (17, 7), (24, 4)):
        found, expected = stream[position], endless[first]
        assert torch.equal(found["image"], expected["image"])
        assert (found["name"], found["position"]) == (expected["name"], first)
    assert any(not torch.equal(endless[p]["image"], endless[p + 10]["image"]) for p in range(5))
    assert endless[17]["position"] == 17


def test_stream_gives_the_transformed_sample_under_its_name(tmp_path):
    def crop(image, label, rng):
        return image[:2][:, :3] + 100, label[:2, :3]

    item = TrainStream(make(tmp_path, 5), crop, seed=1)[3]
    assert item["image"].shape == (3, 2, 3)
    assert item["label"].shape == (2, 3)
    assert (item["image"] == 100 + int(item["name"])).all()


def test_a_bad_sample_is_replaced_by_the_next_of_its_epochs_order(tmp_path):
    dataset = make(tmp_path, 5)
    sound = TrainStream(dataset, noise, seed=3)
    order = [sound.index(position) for position in range(5)]
    (tmp_path / f"x/{order[1]}.png").write_bytes(b"")
    save(tmp_path / f"y/{order[2]}.png", np.full((4, 6), 77))
    stream = TrainStream(dataset, noise, seed=3, skip_bad=True)
    found = [stream[position] for position in range(5)]
    assert [item["name"] for item in found] == [str(order[i]) for i in (0, 3, 3, 3, 4)]
    assert [len(item["skipped"].splitlines()) for item in found] == [0, 2, 1, 0, 0]
    lines = found[1]["skipped"].splitlines()
    assert lines[0].startswith(f"{order[1]}: {tmp_path}/x/{order[1]}.png cannot be decoded (it is empty")
    assert lines[1].startswith(f"{order[2]}: {tmp_path}/y/{order[2]}.png holds the ids [77]")
    # Augmented as the position says, whichever sample stands there; the last of an epoch is followed by its first.
    assert not torch.equal(found[1]["image"], found[3]["image"])
    assert torch.equal(found[3]["image"], sound[3]["image"])
    (tmp_path / f"x/{order[1]}.png").write_bytes((tmp_path / f"x/{order[0]}.png").read_bytes())
    (tmp_path / f"x/{order[4]}.png").write_bytes(b"")
    assert stream[4]["name"] == str(order[0])
    with pytest.raises(ValueError, match="it is empty"):
        sound[4]


def test_a_data_set_of_which_more_than_half_is_bad_is_refused(tmp_path):
    dataset = make(tmp_path, 4)
    stream = TrainStream(dataset, noise, seed=0, skip_bad=True)
    first = [stream.index(position) for position in range(3)]
    for index in first[:2]:
        (tmp_path / f"x/{index}.png").write_bytes(b"")
    assert stream[0]["name"] == str(first[2])
    (tmp_path / f"x/{first[2]}.png").unlink()
    with pytest.raises(ValueError, match=rf"3 of the 4 training samples in a row cannot be read.*x/{first[2]}.png"):
        stream[0]
