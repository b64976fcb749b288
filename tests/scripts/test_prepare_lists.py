import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.camvid import CamVid
from datasets.cityscapes import Cityscapes
from scripts.prepare_lists import main, segnet_split

REPOSITORY = Path(__file__).parents[2]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def picture(path: Path, size=(4, 6)) -> None:
    save(path, np.zeros((*size, 3)))


def segnet(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(count):
            picture(root / f"{split}/{i}.png")
            save(root / f"{split}annot/{i}.png", np.full((4, 6), i))
    return root


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


def test_camvid_in_segnets_layout(tmp_path, capsys):
    assert main(["camvid", str(segnet(tmp_path))]) == 0
    expected = "train/0.png trainannot/0.png\ntrain/1.png trainannot/1.png\ntrain/2.png trainannot/2.png\n"
    assert (tmp_path / "train.txt").read_text() == expected
    output = capsys.readouterr().out.splitlines()
    assert [line.split() for line in output[:3]] == [
        ["train", "3", "of", "367", "(364", "missing)"],
        ["val", "1", "of", "101", "(100", "missing)"],
        ["test", "2", "of", "233", "(231", "missing)"],
    ]
    assert len(CamVid(tmp_path, "test.txt")) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["test.txt", "train.txt", "val.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("folders", [("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels")])
def test_camvid_in_the_original_layout(tmp_path, folders):
    for name in ("0001TP_006690", "0016E5_07959", "Seq05VD_f00030"):
        picture(tmp_path / folders[0] / f"{name}.png")
        save(tmp_path / folders[1] / f"{name}_L.png", np.full((4, 6, 3), 128))
    assert main(["camvid", str(tmp_path)]) == 0
    line = f"{folders[0]}/0016E5_07959.png {folders[1]}/0016E5_07959_L.png\n"
    assert (tmp_path / "val.txt").read_text() == line
    assert CamVid(tmp_path, "test.txt").load(0)[1].max() == 0  # all sky


def test_cityscapes(tmp_path):
    for split, city, label in (
        ("train", "ulm", "labelIds"),
        ("val", "lindau", "labelTrainIds"),
        ("test", "bonn", None),
    ):
        picture(tmp_path / f"leftImg8bit/{split}/{city}/{city}_1_2_leftImg8bit.png")
        if label:
            save(tmp_path / f"gtFine/{split}/{city}/{city}_1_2_gtFine_{label}.png", np.full((4, 6), 7))
    save(tmp_path / "gtFine/train/ulm/ulm_1_2_gtFine_labelTrainIds.png", np.full((4, 6), 0))
    save(tmp_path / "gtFine/test/bonn/bonn_1_2_gtFine_labelIds.png", np.full((4, 6), 0))
    assert main(["cityscapes", str(tmp_path)]) == 0
    assert (tmp_path / "train.txt").read_text() == (
        "leftImg8bit/train/ulm/ulm_1_2_leftImg8bit.png gtFine/train/ulm/ulm_1_2_gtFine_labelIds.png\n"
    )
    assert "gtFine_labelTrainIds.png" in (tmp_path / "val.txt").read_text()
    assert (tmp_path / "test.txt").read_text() == "leftImg8bit/test/bonn/bonn_1_2_leftImg8bit.png\n"
    assert (Cityscapes(tmp_path, "test.txt").load(0)[1] == 255).all()


def test_names_with_spaces_are_separated_by_a_tab(tmp_path):
    picture(tmp_path / "train/my frame.png")
    save(tmp_path / "trainannot/my frame.png", np.zeros((4, 6)))
    assert main(["camvid", str(tmp_path)]) == 0
    assert CamVid(tmp_path, "train.txt").names == ["my frame"]


def spoil_label(root):
    (root / "valannot/0.png").unlink()


def spoil_image(root):
    (root / "train/1.png").unlink()


def spoil_size(root):
    save(root / "testannot/1.png", np.zeros((6, 4)))


def spoil_ids(root):
    save(root / "testannot/1.png", np.full((4, 6), 77))


def spoil_file(root):
    (root / "testannot/1.png").write_bytes(b"no picture")


def spoil_header(root):
    (root / "test/1.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_label, "val/0.png: has no label"),
        (spoil_image, "trainannot/1.png: has no image"),
        (spoil_size, "test/1.png is 4 x 6 (H x W), its label"),
        (spoil_ids, "testannot/1.png holds the ids [77]"),
        (spoil_file, "testannot/1.png cannot be decoded"),
        (spoil_header, "test/1.png"),
    ],
)
def test_what_is_broken_is_named_and_nothing_is_written(tmp_path, capsys, spoil, message):
    spoil(segnet(tmp_path))
    assert main(["camvid", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "problems: 1; nothing was written" in errors
    assert not [path for path in tmp_path.iterdir() if path.is_file() or path.name.startswith(".")]


def test_frames_of_no_sequence_are_named(tmp_path, capsys):
    picture(tmp_path / "images/holiday_1.png")
    save(tmp_path / "labels/holiday_1_L.png", np.zeros((4, 6, 3)))
    assert main(["camvid", str(tmp_path)]) == 1
    assert "holiday_1: no frame of CamVid" in capsys.readouterr().err


def test_a_list_with_other_lines_is_kept(tmp_path, capsys):
    (segnet(tmp_path) / "val.txt").write_text("by hand\n")
    assert main(["camvid", str(tmp_path)]) == 1
    assert "val.txt is there with other lines" in capsys.readouterr().err
    assert (tmp_path / "val.txt").read_text() == "by hand\n"
    assert not (tmp_path / "train.txt").exists()


def test_a_second_run_changes_nothing(tmp_path):
    for _ in range(2):
        assert main(["camvid", str(segnet(tmp_path))]) == 0
    assert main(["camvid", str(tmp_path), "--check"]) == 0


def test_check_reads_the_lists_and_writes_nothing(tmp_path, capsys):
    segnet(tmp_path)
    assert main(["camvid", str(tmp_path), "--check"]) == 1
    assert "holds none of train.txt, val.txt, test.txt" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("train/0.png trainannot/0.png\n")
    assert main(["camvid", str(tmp_path), "--check"]) == 0
    assert not (tmp_path / "val.txt").exists()
    (tmp_path / "train.txt").write_text("train/0.png trainannot/9.png\n")
    assert main(["camvid", str(tmp_path), "--check"]) == 1
    assert "trainannot/9.png" in capsys.readouterr().err


def test_an_empty_folder_is_told_the_layouts(tmp_path, capsys):
    assert main(["cityscapes", str(tmp_path)]) == 1
    assert "leftImg8bit/{train,val,test}" in capsys.readouterr().err


def test_runs_as_a_module(tmp_path):
    segnet(tmp_path)
    command = [sys.executable, "scripts/prepare_lists.py", "camvid", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert "wrote" in run.stdout
    assert run.stderr == ""
