"""Synthetic scenes: what every picture must satisfy, and how a data set reaches the disk."""

import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from datasets import build_dataset
from scripts.street import scene as synthetic
from scripts.street.canvas import Label
from scripts.street.scene import SPLITS, render_scene, scene_seed, write_synthetic

SIZE = (96, 128)
TINY = (32, 40)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, SIZE) for seed in range(30)]


def digest(seed, size):
    image, label = render_scene(seed, size)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


def test_shapes_and_types(scenes):
    for image, label in scenes:
        assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
        assert (label.shape, label.dtype) == (SIZE, np.uint8)


def test_same_seed_same_bytes_here_and_in_another_process():
    program = (
        "import hashlib; from scripts.street.scene import render_scene; image, label = render_scene(5, (96, 128)); "
        "print(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert digest(5, SIZE) == digest(5, SIZE) == elsewhere.stdout.strip()
    assert digest(5, SIZE) != digest(6, SIZE)


def test_global_random_state_is_neither_read_nor_moved():
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    cv2.setRNGSeed(3)
    before = digest(1, TINY)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(4)
    cv2.setRNGSeed(4)
    assert digest(1, TINY) == before


def test_classes_are_camvids_in_plausible_shares(scenes):
    counts = np.bincount(np.concatenate([label.ravel() for _, label in scenes]), minlength=12)
    assert len(counts) == 12
    assert (counts > 0).all()
    share = counts / counts.sum()
    assert (share[[Label.SKY, Label.BUILDING, Label.ROAD]] > 0.12).all()
    assert (share[[2, 6, 7, 9, 10]] < 0.03).all()  # poles, signs, fences and people are rare
    assert 0.02 < share[Label.CAR] < 0.15


def test_void_is_thin_and_scarce(scenes):
    for _, label in scenes:
        void = (label == Label.UNLABELLED).astype(np.uint8)
        assert 0 < void.mean() < 0.08
        assert not cv2.erode(void, np.ones((5, 5), np.uint8)).any()  # never a region, only outlines


def test_sky_is_above_the_road(scenes):
    for _, label in scenes:
        sky, road = np.nonzero(label == Label.SKY)[0], np.nonzero(label == Label.ROAD)[0]
        assert road.max() == SIZE[0] - 1
        assert sky.max(initial=0) <= road.min() + 1


def test_picture_and_label_are_aligned(scenes):
    """Outlines of the labels are, on average, where the picture changes most."""
    on, off = [], []
    for image, label in scenes:
        step = np.abs(np.diff(cv2.GaussianBlur(image, (3, 3), 0).astype(float).sum(2), axis=1))
        edge = label[:, 1:] != label[:, :-1]
        on.append(step[edge].mean())
        off.append(step[np.roll(edge, 9, axis=1) & ~edge].mean())
    assert np.mean(on) > 1.3 * np.mean(off)


def test_every_size_shows_the_same_street():
    for seed in range(4):
        small, large = render_scene(seed, SIZE)[1], render_scene(seed, (2 * SIZE[0], 2 * SIZE[1]))[1][::2, ::2]
        known = (small != Label.UNLABELLED) & (large != Label.UNLABELLED)
        assert (small == large)[known].mean() > 0.93


@pytest.mark.parametrize(("seed", "size"), [(-1, SIZE), (0, (31, 128)), (0, (96, 16))])
def test_impossible_scenes_are_refused(seed, size):
    with pytest.raises(ValueError, match="at least 32 pixels"):
        render_scene(seed, size)


def test_scene_seeds_are_unique():
    seeds = [scene_seed(seed, split, i) for seed in range(3) for split in SPLITS for i in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_layout_on_disk(tmp_path):
    out = tmp_path / "new" / "data"
    assert write_synthetic(out, train=2, val=1, test=1, size=TINY, seed=4)
    lists = {split: (out / f"{split}.txt").read_text() for split in SPLITS}
    assert lists["train"] == (
        "train/train_00000.png trainannot/train_00000.png\ntrain/train_00001.png trainannot/train_00001.png\n"
    )
    assert lists["val"] == "val/val_00000.png valannot/val_00000.png\n"
    assert lists["test"] == "test/test_00000.png testannot/test_00000.png\n"
    image, label = render_scene(scene_seed(4, "train", 1), TINY)
    np.testing.assert_array_equal(cv2.imread(str(out / "train/train_00001.png"))[..., ::-1], image)
    stored = cv2.imread(str(out / "trainannot/train_00001.png"), cv2.IMREAD_UNCHANGED)
    assert stored.ndim == 2
    np.testing.assert_array_equal(stored, label)
    assert [path.name for path in out.parent.iterdir()] == ["data"]


def test_the_camvid_loader_reads_it(tmp_path):
    write_synthetic(tmp_path / "data", train=1, val=1, size=TINY, seed=4)
    assert not (tmp_path / "data" / "test.txt").exists()
    image, label = build_dataset("camvid", tmp_path / "data", "val.txt").load(0)
    expected_image, expected_label = render_scene(scene_seed(4, "val", 0), TINY)
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(label, np.where(expected_label == Label.UNLABELLED, 255, expected_label))


def test_growing_a_split_keeps_its_pictures(tmp_path):
    write_synthetic(tmp_path / "a", train=1, val=1, size=TINY)
    write_synthetic(tmp_path / "b", train=3, val=2, test=1, size=TINY)
    for name in ("train/train_00000.png", "trainannot/train_00000.png", "val/val_00000.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pictures = {path.read_bytes() for path in (tmp_path / "b").glob("*/*.png") if "annot" not in path.parent.name}
    assert len(pictures) == 6  # no picture twice, in any split


def test_the_same_data_set_is_left_alone(tmp_path, monkeypatch):
    write_synthetic(tmp_path / "data", train=1, val=1, size=TINY)
    monkeypatch.setattr(synthetic, "render_scene", None)  # painting anything would fail
    assert not write_synthetic(tmp_path / "data", train=1, val=1, size=TINY)


@pytest.mark.parametrize("change", [{"train": 2}, {"val": 2}, {"test": 1}, {"size": (40, 40)}, {"seed": 1}])
def test_another_data_set_is_not_overwritten(tmp_path, change):
    asked = {"train": 1, "val": 1, "size": TINY}
    write_synthetic(tmp_path / "data", **asked)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="delete that folder or choose another"):
        write_synthetic(tmp_path / "data", **(asked | change))
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == before


def test_another_version_of_the_renderer_is_noticed(tmp_path, monkeypatch):
    write_synthetic(tmp_path / "data", train=1, val=1, size=TINY)
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    with pytest.raises(ValueError, match='"version"'):
        write_synthetic(tmp_path / "data", train=1, val=1, size=TINY)


def test_foreign_folders_and_files_are_not_touched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="so it is not replaced"):
        write_synthetic(tmp_path / "thesis", train=1, val=1, size=TINY)
    with pytest.raises(ValueError, match="is a file"):
        write_synthetic(tmp_path / "thesis" / "chapter.tex", train=1, val=1, size=TINY)
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.tex"]
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    assert write_synthetic(tmp_path / "data", train=1, val=1, size=TINY)
    assert json.loads((tmp_path / "data" / "synthetic.json").read_text())["size"] == list(TINY)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, failure):
    calls = []

    def fails_the_third_time(seed, size):
        calls.append(seed)
        if len(calls) == 3:
            raise failure
        return render_scene(seed, size)

    monkeypatch.setattr(synthetic, "render_scene", fails_the_third_time)
    with pytest.raises(failure):
        write_synthetic(tmp_path / "data", train=4, val=1, size=TINY)
    assert len(calls) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"test": -1}, {"seed": -1}, {"size": (16, 16)}])
def test_impossible_data_sets_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected train >= 1|a scene needs a seed >= 0 and at least 32 pixels"):
        write_synthetic(tmp_path / "data", **({"train": 1, "val": 1, "size": TINY} | wrong))
    assert not list(tmp_path.iterdir())
