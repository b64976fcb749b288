"""The command: what it says, goes on with, verifies and refuses; and a config that reads what it wrote."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from configs.schema import Experiment
from datasets.base import SegDataset
from datasets.packed import PackedDataset
from engine.data import build_split, build_train_stream
from scripts import pack_dataset
from scripts.pack_dataset import main
from utils.config import ConfigError, load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path, streets, monkeypatch):
    """A copy of the streets that may be spoilt; two samples go into a shard."""
    monkeypatch.setattr(pack_dataset, "SHARD", 2 * 48 * 64 * 4)
    shutil.copytree(streets, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def command(experiments, data, tmp_path):
    def run(*arguments):
        options = ["--cfg-options", f"data.root={data}"]
        return main([experiments["alone"], "--out", str(tmp_path / "out"), *arguments, *options])

    return run


@pytest.fixture
def decoded(monkeypatch):
    """The samples that are decoded."""
    indices, load = [], SegDataset.load

    def counting(self, index):
        indices.append(index)
        return load(self, index)

    monkeypatch.setattr(SegDataset, "load", counting)
    return indices


def test_runs_as_a_file(experiments, tmp_path):
    command = [sys.executable, "scripts/pack_dataset.py", experiments["alone"], "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "out"
    assert done.stdout.splitlines() == [
        f"{out}/train: 8 samples, 0.09 MiB, of which 0.09 MiB are missing",
        f"{out}/val: 5 samples, 0.06 MiB, of which 0.06 MiB are missing",
        f"{out}: train, val verified; read it by data.packed='{out}'",
    ]
    assert sorted(path.name for path in (out / "train").iterdir()) == ["00000.bin", "index.json"]


def test_one_key_of_a_config_reads_it(command, experiments, data, tmp_path):
    assert command() == 0
    root = f"data.root={data}"
    from_files = load_config(experiments["alone"], Experiment, [root])
    from_pack = load_config(experiments["alone"], Experiment, [root, f"data.packed={tmp_path / 'out'}"])
    expected, found = (build_train_stream(config, "config.py") for config in (from_files, from_pack))
    assert isinstance(found.labelled.dataset.samples[0][0], PackedDataset)
    assert not isinstance(expected.labelled.dataset.samples[0][0], PackedDataset)
    for position in (0, 9, 20):
        assert torch.equal(found[position]["image"], expected[position]["image"])
        assert torch.equal(found[position]["label"], expected[position]["label"])
    assert len(build_split(from_pack, "config.py", "val")) == 5
    nowhere = load_config(experiments["alone"], Experiment, [root, "data.packed=nowhere"])
    with pytest.raises(ConfigError, match=r"config.py: data: nowhere/val/index.json is missing.*--splits val"):
        build_split(nowhere, "config.py", "val")


def test_unlabelled_images_are_packed_and_read(command, experiments, data, tmp_path):
    options = [f"data.root={data}", "data.unlabelled=val/*.png", "train.unlabelled_batch=2", "distill.pixels=inside"]
    splits = ["--splits", "train", "unlabelled", "--cfg-options", *options]
    assert main([experiments["hmkd"], "--out", str(tmp_path / "out"), *splits]) == 0
    streams = [
        build_train_stream(load_config(experiments["hmkd"], Experiment, [*options, *more]), "config.py")
        for more in ((), (f"data.packed={tmp_path / 'out'}",))
    ]
    for position in (-1, -7, 3):
        one, other = (stream[position] for stream in streams)
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


@pytest.fixture
def stopped(command, decoded, tmp_path, monkeypatch):
    """A run is stopped in its third shard; what was decoded is forgotten. Gives the folder of the split."""
    load = SegDataset.load

    def stop(self, index):
        if index == 5:
            raise KeyboardInterrupt
        return load(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegDataset, "load", stop)
        with pytest.raises(SystemExit, match="the same command resumes"):
            command()
    assert decoded == [0, 1, 2, 3, 4]
    decoded.clear()
    return tmp_path / "out/train"


def test_a_run_that_was_stopped_goes_on(command, decoded, stopped):
    assert sorted(path.name for path in stopped.iterdir()) == ["00000.bin", "00000.json", "00001.bin", "00001.json"]
    (stopped / ".00002.bin.77.tmp").write_bytes(b"half")
    assert command() == 0
    assert decoded == [4, 5, 6, 7, 0, 1, 2, 3, 4]  # of train and val
    assert sorted(path.name for path in stopped.iterdir()) == [*(f"0000{i}.bin" for i in range(4)), "index.json"]
    decoded.clear()
    assert command() == 0
    assert decoded == []


def test_a_finished_shard_of_other_samples_or_another_size_is_not_kept(command, decoded, stopped, data):
    listed = (data / "train.txt").read_text().splitlines(keepends=True)
    (data / "train.txt").write_text("".join([*listed[:2], listed[3], listed[2], *listed[4:]]))
    (stopped / "00000.bin").write_bytes(b"short")
    assert command("--splits", "train") == 0
    assert decoded == list(range(8))
    assert command("--splits", "train", "--verify") == 0


def test_a_disk_without_room_is_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack_dataset.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * 48 * 64 * 4))
    assert command() == 1
    assert f"{tmp_path / 'out'} has 0.09 MiB free, but 0.15 MiB are needed; free space" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert command("--splits", "train") == 0  # 8 samples just fit


def test_what_is_verified(command, data, tmp_path, capsys):
    assert command("--verify") == 1
    assert "index.json is missing: not packed, or not completely" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command() == 0
    label = next((data / "trainannot").iterdir())
    label.write_bytes(label.read_bytes() + b"?")
    assert command("--verify") == 1
    assert "source_bytes" in capsys.readouterr().err
    label.write_bytes(label.read_bytes()[:-2] + b"?")
    assert command() == 0  # as large as before: only reading it tells
    assert command("--verify") == 1
    assert f"{label.name} has changed since it was packed" in capsys.readouterr().err
    shard = tmp_path / "out/val/00000.bin"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    assert command("--splits", "val") == 1
    assert "val/00000.bin: the pixels of" in capsys.readouterr().err


def test_a_damaged_source_is_named(command, data, capsys):
    image = sorted((data / "train").iterdir())[3]
    image.write_bytes(image.read_bytes()[:-20])
    assert command() == 1
    assert f"{image.name} cannot be decoded" in capsys.readouterr().err


def test_an_image_that_would_fill_the_memory_is_named(command, data, monkeypatch, capsys):
    """Judged by its header, before anything is decoded; a bomb takes few bytes."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 64 // 2 - 1)
    first = data / (data / "train.txt").read_text().split()[0]
    assert command() == 1
    assert re.match(rf"error: {first} cannot be decoded .*decompression bomb", capsys.readouterr().err)
