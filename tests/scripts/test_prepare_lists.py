import math
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.camvid import CamVid
from datasets.cityscapes import Cityscapes
from scripts.prepare_lists import main

REPOSITORY = Path(__file__).parents[2]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def picture(path: Path, size=(4, 6)) -> None:
    save(path, np.zeros((*size, 3)))


ALL_CLASSES = np.arange(24).reshape(4, 6) % 12  # of CamVid, as SegNet's label files have them: 11 is void


def segnet(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(count):
            picture(root / f"{split}/{i}.png")
            save(root / f"{split}annot/{i}.png", ALL_CLASSES)
    return root


def test_camvid_in_segnets_layout(tmp_path, capsys):
    assert main(["camvid", str(segnet(tmp_path))]) == 0
    expected = "train/0.png trainannot/0.png\ntrain/1.png trainannot/1.png\ntrain/2.png trainannot/2.png\n"
    assert (tmp_path / "train.txt").read_text() == expected
    output = capsys.readouterr().out.splitlines()
    assert output[:3] == [
        "train         3 of 367 (364 missing), H x W: 4 x 6 (3)",
        "val           1 of 101 (100 missing), H x W: 4 x 6 (1)",
        "test          2 of 233 (231 missing), H x W: 4 x 6 (2)",
    ]
    assert len(CamVid(tmp_path, "test.txt")) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["test.txt", "train.txt", "val.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("folders", [("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels")])
def test_camvid_in_the_original_layout(tmp_path, folders):
    for name in ("0001TP_006690", "0016E5_07959", "Seq05VD_f00030"):
        picture(tmp_path / folders[0] / f"{name}.png")
        label = np.full((4, 6, 3), 128)
        label[2:] = (64, 64, 0)
        save(tmp_path / folders[1] / f"{name}_L.png", label)
    assert main(["camvid", str(tmp_path)]) == 0
    line = f"{folders[0]}/0016E5_07959.png {folders[1]}/0016E5_07959_L.png\n"
    assert (tmp_path / "val.txt").read_text() == line
    assert CamVid(tmp_path, "test.txt").load(0)[1][:, 0].tolist() == [0, 0, 9, 9]  # sky, pedestrian


def test_cityscapes(tmp_path):
    for split, city, label in (
        ("train", "ulm", "labelIds"),
        ("val", "lindau", "labelTrainIds"),
        ("test", "bonn", None),
    ):
        picture(tmp_path / f"leftImg8bit/{split}/{city}/{city}_1_2_leftImg8bit.png")
        if label:
            ids = np.repeat([7, 8, 11], 8).reshape(4, 6)
            save(tmp_path / f"gtFine/{split}/{city}/{city}_1_2_gtFine_{label}.png", ids)
    save(tmp_path / "gtFine/train/ulm/ulm_1_2_gtFine_labelTrainIds.png", np.full((4, 6), 0))
    save(tmp_path / "gtFine/test/bonn/bonn_1_2_gtFine_labelIds.png", np.full((4, 6), 0))
    assert main(["cityscapes", str(tmp_path)]) == 0
    assert (tmp_path / "train.txt").read_text() == (
        "leftImg8bit/train/ulm/ulm_1_2_leftImg8bit.png gtFine/train/ulm/ulm_1_2_gtFine_labelIds.png\n"
    )
    assert "gtFine_labelTrainIds.png" in (tmp_path / "val.txt").read_text()
    assert (tmp_path / "test.txt").read_text() == "leftImg8bit/test/bonn/bonn_1_2_leftImg8bit.png\n"
    assert (Cityscapes(tmp_path, "test.txt").load(0)[1] == 255).all()


@pytest.mark.parametrize("options", [[], ["data.test_list=tset.txt"]])
def test_cityscapes_without_test_images_is_complete_for_a_shipped_config(tmp_path, capsys, options):
    for split, city in (("train", "ulm"), ("val", "lindau")):
        picture(tmp_path / f"leftImg8bit/{split}/{city}/{city}_1_2_leftImg8bit.png")
        save(tmp_path / f"gtFine/{split}/{city}/{city}_1_2_gtFine_labelIds.png", np.arange(24).reshape(4, 6))
    assert main(["cityscapes", str(tmp_path)]) == 0
    assert not (tmp_path / "test.txt").exists()
    capsys.readouterr()
    config = str(REPOSITORY / "configs/baselines/cityscapes_r18.py")
    assert main(["--config", config, "--cfg-options", f"data.root={tmp_path}", *options]) == 0
    name = "tset" if options else "test"
    assert f"test          0: data.test_list {tmp_path}/{name}.txt is missing; only eval.py" in capsys.readouterr().out


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
        (spoil_size, "test/1.png is 4 x 6 (H x W) and its label"),
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
    assert "holiday_1: not a frame of CamVid" in capsys.readouterr().err


def test_a_list_with_other_lines_is_kept(tmp_path, capsys):
    (segnet(tmp_path) / "val.txt").write_text("by hand\n")
    assert main(["camvid", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "val.txt exists with other lines" in errors
    assert "problems: 1; nothing was written" in errors
    assert (tmp_path / "val.txt").read_text() == "by hand\n"
    assert not (tmp_path / "train.txt").exists()


def published(root: Path) -> dict[str, str]:
    """SegNet's folders with its published lists, in an order of their own; the text of each list."""
    texts = {}
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        lines = [f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png\n" for i in range(count)]
        texts[split] = "".join(reversed(lines))
        (segnet(root) / f"{split}.txt").write_text(texts[split])
    return texts


def test_segnets_published_lists_are_written_anew_in_their_order_and_kept(tmp_path, capsys):
    texts = published(tmp_path)
    assert main(["camvid", str(tmp_path)]) == 0
    for split, text in texts.items():
        assert (tmp_path / f"{split}.txt").read_text() == text.replace("/SegNet/CamVid/", "")
        assert (tmp_path / f"{split}.txt.orig").read_text() == text
    out = capsys.readouterr().out
    assert f"{tmp_path}/val.txt had absolute paths, written anew relative to {tmp_path}" in out
    assert "the old list is val.txt.orig" in out
    assert CamVid(tmp_path, "train.txt").names == ["2", "1", "0"]
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.txt*")}
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.txt").write_text(texts["train"])
    assert main(["camvid", str(tmp_path)]) == 1  # the list that was kept first stays
    assert f"{tmp_path}/train.txt.orig exists" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.txt*")} == before | {
        "train.txt": texts["train"].encode()
    }


@pytest.mark.parametrize(
    "line", ["/SegNet/CamVid/train/7.png /SegNet/CamVid/trainannot/7.png\n", "/a/0.png /b/0.png\n"]
)
def test_a_list_of_other_files_is_not_taken_for_a_moved_one(tmp_path, capsys, line):
    (segnet(tmp_path) / "train.txt").write_text(line)
    assert main(["camvid", str(tmp_path)]) == 1
    assert "train.txt exists with other lines" in capsys.readouterr().err
    assert (tmp_path / "train.txt").read_text() == line


def test_a_check_of_published_lists_says_what_writes_them_anew(tmp_path, capsys):
    published(tmp_path)
    advice = "python scripts/prepare_lists.py rewrites the lists of CamVid that SegNet published"
    config = ["--config", str(REPOSITORY / "configs/baselines/camvid_r18.py"), "--cfg-options", f"data.root={tmp_path}"]
    for arguments in (["camvid", str(tmp_path), "--check"], config):
        assert main(arguments) == 1
        assert capsys.readouterr().err.count(advice) == 3
    assert not list(tmp_path.glob("*.orig"))


def test_a_second_run_changes_nothing(tmp_path):
    for _ in range(2):
        assert main(["camvid", str(segnet(tmp_path))]) == 0
    assert main(["camvid", str(tmp_path), "--check"]) == 0


def test_check_reads_the_lists_and_writes_nothing(tmp_path, capsys):
    segnet(tmp_path)
    assert main(["camvid", str(tmp_path), "--check"]) == 1
    assert "has none of train.txt, val.txt, test.txt" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("train/0.png trainannot/0.png\n")
    assert main(["camvid", str(tmp_path), "--check"]) == 0
    assert not (tmp_path / "val.txt").exists()
    (tmp_path / "train.txt").write_text("train/0.png trainannot/9.png\n")
    assert main(["camvid", str(tmp_path), "--check"]) == 1
    assert "trainannot/9.png" in capsys.readouterr().err


LISTED = """
data = dict(type="list", root={root!r}, crop_size=(4, 4), class_names=["a", "b"], id_table={{0: 0, 5: 1}})
student = dict(backbone="mit_b0", head="segformer")
optimizer = dict(type="sgd", lr=0.1)
schedule = dict(max_iters=1)
train = dict(batch_size=1)
"""


def listed(root: Path, count: int = 2) -> str:
    """A ``list`` data set of good samples, and its config."""
    for i in range(count):
        picture(root / f"x/{i}.png")
        save(root / f"y/{i}.png", np.repeat([0, 5, 5, 255], 6).reshape(4, 6))
    (root / "train.txt").write_text("".join(f"x/{i}.png y/{i}.png\n" for i in range(count)))
    (root / "val.txt").write_text("x/0.png y/0.png\n")
    (root / "config.py").write_text(LISTED.format(root=str(root)))
    return str(root / "config.py")


def cut_off(path: Path) -> None:
    save(path, np.random.default_rng(0).integers(0, 255, (4, 6, 3)))
    path.write_bytes(path.read_bytes()[:-30])


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((4, 6), 1285, np.uint16)).save(path)


def four_bits(path: Path) -> None:
    """Ids of 4 bits, all 6: a decoder that fills 0..255 would give 6 x 17."""
    rows = b"".join(b"\0" + bytes([0x66] * 3) for _ in range(4))
    path.write_bytes(png(struct.pack(">IIBBBBB", 6, 4, 4, 0, 0, 0, 0), zlib.compress(rows)))


def bomb(path: Path) -> None:
    """A picture of 900 million pixels in a few bytes."""
    path.write_bytes(png(struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0), zlib.compress(bytes(9999))))


def png(header: bytes, data: bytes) -> bytes:
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("x/1.png", Path.unlink, "{root}/x/1.png: is missing, or is a broken link"),
        ("y/1.png", loop, "{root}/y/1.png: is missing, or is a broken link"),
        ("x/1.png", lambda path: path.write_bytes(b""), "{root}/x/1.png cannot be decoded (it is empty: 0 bytes)"),
        ("x/1.png", cut_off, "{root}/x/1.png cannot be decoded (cut off"),
        ("x/1.png", sixteen_bits, "{root}/x/1.png has 16 bits a channel, with values 1285..1285"),
        ("x/1.png", lambda path: Image.new("CMYK", (6, 4)).save(path, "jpeg"), "x/1.png has pixel format 'CMYK'"),
        ("x/1.png", bomb, "{root}/x/1.png is 30000 x 30000 (H x W); expected at most 178956970 pixels"),
        ("x/1.png", lambda path: picture(path, (6, 4)), "x/1.png is 6 x 4 (H x W) and its label {root}/y/1.png is 4 x"),
        ("y/1.png", lambda path: save(path, np.full((4, 6), 9)), "y/1.png holds the ids [9]"),
        ("y/1.png", lambda path: save(path, np.full((4, 6, 3), 5)), "y/1.png holds colours; expected ids"),
        ("y/1.png", sixteen_bits, "{root}/y/1.png holds the ids [1285]"),
        ("y/1.png", four_bits, "{root}/y/1.png holds the ids [6]"),
        ("y/1.png", lambda path: Image.new("L", (6, 4), 5).save(path, "jpeg"), "y/1.png does not store ids exactly"),
    ],
)
def test_the_lists_of_any_config_are_checked_and_every_fault_is_named(tmp_path, capsys, file, spoil, message):
    config = listed(tmp_path)
    assert main(["--config", config]) == 0
    assert capsys.readouterr().out.startswith("train         2, H x W: 4 x 6 (2)\nval           1, H x W: 4 x 6 (1)\n")
    spoil(tmp_path / file)
    assert main(["--config", config, "--check"]) == 1
    errors = capsys.readouterr().err
    assert message.format(root=tmp_path) in errors
    assert "problems: 1\n" in errors


def test_what_train_and_val_hold_is_shown_in_tables(tmp_path, capsys):
    config = listed(tmp_path)
    picture(tmp_path / "x/1.png", (2, 6))
    save(tmp_path / "y/1.png", np.full((2, 6), 5))
    assert main(["--config", config]) == 0
    out = capsys.readouterr().out
    assert "train         2, H x W: 4 x 6 (1), 2 x 6 (1)\n" in out
    rows = [line.split() for line in out.splitlines()]
    # Of 36 pixels in train, 6 are 0, 24 are 5 and 6 are 255; of 24 in val 6, 12 and 6.
    for row in ["0 a 16.67 % 25.00 %", "5 b 66.67 % 50.00 %", "255 (void) 16.67 % 25.00 %"]:
        assert row.split() in rows
    for row in ["a 16.67 % 1 of 2 25.00 % 1 of 1", "b 66.67 % 2 of 2 50.00 % 1 of 1", "(void) 16.67 % 25.00 %"]:
        assert row.split() in rows
    weights = tuple(round(1 / math.log(1.02 + share), 3) for share in (0.2, 0.8))
    assert out.endswith(f"train.class_weights={weights}\n")


def test_masks_of_0_and_255_give_the_advice_to_name_the_table(tmp_path, capsys):
    """The tables still show what was found; no weights are suggested for labels that were read wrong."""
    config = listed(tmp_path)
    for i in range(2):
        save(tmp_path / f"y/{i}.png", np.repeat([0, 255], 12).reshape(4, 6))
    text = Path(config).read_text()
    Path(config).write_text(text.replace(", id_table={0: 0, 5: 1}", ""))
    assert main(["--config", config]) == 1
    out, errors = capsys.readouterr()
    assert "set data.id_table={0: 0, 255: 1}" in errors
    assert ["255", "(void)", "50.00", "%", "50.00", "%"] in [line.split() for line in out.splitlines()]
    assert "class_weights" not in out
    Path(config).write_text(text.replace("5: 1", "255: 1"))
    assert main(["--config", config]) == 0


def test_a_class_without_a_pixel_is_named(tmp_path, capsys):
    segnet(tmp_path)
    save(tmp_path / "valannot/0.png", np.minimum(ALL_CLASSES, 9))
    assert main(["camvid", str(tmp_path)]) == 0
    assert "no pixel in the validation labels: 'Bicyclist'; mIoU is over the other 10 of 11" in capsys.readouterr().err


def test_missing_files_do_not_hide_what_is_wrong_with_the_others(tmp_path, capsys):
    config = listed(tmp_path, 16)
    for index in range(12):
        (tmp_path / f"x/{index}.png").unlink()
    (tmp_path / "y/3.png").unlink()
    cut_off(tmp_path / "x/14.png")
    assert main(["--config", config]) == 1
    errors = capsys.readouterr().err.splitlines()
    for name in [f"x/{index}.png" for index in range(12)] + ["y/3.png"]:
        assert f"error: {tmp_path}/{name}: is missing, or is a broken link" in errors
    assert any(f"{tmp_path}/x/14.png cannot be decoded" in line for line in errors)
    assert errors[-1] == "problems: 15"  # the lists' own: train misses 13 and one is cut off, val misses x/0.png


def test_what_is_legal_but_may_be_a_mistake_is_counted(tmp_path, capsys):
    config = listed(tmp_path, 4)
    save(tmp_path / "y/1.png", np.full((4, 6), 255))
    save(tmp_path / "y/3.png", np.full((4, 6), 255))
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "x/2.png", exif=turned)
    assert main(["--config", config]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert f"train: 2 labels are void everywhere and teach nothing; the first is {tmp_path}/y/1.png" in warnings[0]
    assert "train: 1 images have an EXIF rotation" in warnings[1]
    assert len(warnings) == 2


def test_a_config_is_checked_as_it_is_trained(tmp_path, capsys):
    config = listed(tmp_path)
    (tmp_path / "val.txt").write_text("x/0.png\n")
    assert main(["--config", config, "--cfg-options", "data.packed=nowhere"]) == 1
    assert f"{tmp_path}/x/0.png: has no label in its list" in capsys.readouterr().err
    assert main(["--config", config, "--cfg-options", "data.root=nowhere"]) == 1
    assert "data root nowhere is not a folder" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "confg.py")]) == 1
    assert "did you mean" in capsys.readouterr().err
    for arguments in ([], ["camvid"], ["camvid", str(tmp_path), "--config", config], ["camvid", "x", "--cfg-options"]):
        with pytest.raises(SystemExit):
            main(arguments)


def test_an_empty_folder_is_told_the_layouts(tmp_path, capsys):
    assert main(["cityscapes", str(tmp_path)]) == 1
    assert "leftImg8bit/{train,val,test}" in capsys.readouterr().err


def test_runs_as_a_module(tmp_path):
    segnet(tmp_path)
    command = [sys.executable, "scripts/prepare_lists.py", "camvid", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert "wrote" in run.stdout
    assert run.stderr == ""


def test_unlabelled_images_of_a_config_are_read_too(streets, experiments, tmp_path, capsys):
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    shutil.copytree(root / "val", root / "more")
    options = [f"data.root={root}", "train.unlabelled_batch=2", "distill.pixels=inside"]
    arguments = ["--config", experiments["hmkd"], "--cfg-options", *options]
    assert main([*arguments, "data.unlabelled=more/*.png"]) == 0
    assert "unlabelled     5, H x W: 48 x 64 (5)\n" in capsys.readouterr().out
    assert main([*arguments, "data.unlabelled=val/*.png"]) == 1
    assert "5 of the images are in the validation set too" in capsys.readouterr().err
    bad = sorted((root / "more").iterdir())[0]
    bad.write_bytes(b"")
    assert main([*arguments, "data.unlabelled=more/*.png"]) == 1
    assert f"{bad} cannot be decoded" in capsys.readouterr().err
