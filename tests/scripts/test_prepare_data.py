import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.schema import Experiment
from datasets import build_dataset
from scripts.prepare_data import main
from tests.scripts.preparation.folders import SIZE, halves, image, masked, save
from utils.config import load_config

REPOSITORY = Path(__file__).parents[2]
NAMES = [f"{video}_{frame}" for video in "abcde" for frame in (1, 2)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Configs go to the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    return tmp_path


def folder(suffix="png", names=NAMES, mask=None):
    return masked(Path("data/mine"), f"images/{{}}.{suffix}", "masks/{}.png", names, mask)


def refused(capsys, *arguments):
    """The errors; nothing was written."""
    before = sorted(Path().glob("**/*"))
    assert main(["data/mine", *arguments]) == 1
    assert sorted(Path().glob("**/*")) == before
    errors = capsys.readouterr().err
    assert "nothing was written" in errors
    return errors


def test_a_folder_becomes_lists_configs_and_a_picture(capsys):
    folder()
    assert main(["data/mine", "--classes", "grass", "road", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "data/mine: 8 train, 2 val" in out
    assert "split by video: 1 of 5 videos are in val; 2 of 10 images in val (20%, --val 0.2), --seed 3" in out
    for key in (
        "--images",
        "--val",
        "id_table",
        "data.crop_size",
        "schedule.max_iters",
        "eval.interval",
        "optimizer.lr",
    ):
        assert key in out
    assert ["grass", "50.00", "%", "8", "of", "8", "50.00", "%", "2", "of", "2"] in [
        r.split() for r in out.splitlines()
    ]
    assert "train.class_weights=" in out
    lines = [Path(f"data/mine/mine_{split}.txt").read_text().splitlines() for split in ("train", "val")]
    assert sorted(sum(lines, [])) == [f"images/{name}.png masks/{name}.png" for name in NAMES]
    assert len({line.split("_")[0] for line in lines[1]}) == 1
    config = load_config("configs/mine/student.py", Experiment)
    assert config.data.crop_size == SIZE
    assert config.data.options["class_names"] == ("grass", "road")
    dataset = build_dataset(**config.data.options, list_file=config.data.val_list)
    assert (dataset.load_label(0) == halves()).all()
    assert Image.open("configs/mine/samples.png").width == 1700


def test_the_three_configs_fit_together():
    folder()
    assert main(["data/mine"]) == 0
    student, teacher, hmkd = (load_config(f"configs/mine/{n}.py", Experiment) for n in ("student", "teacher", "hmkd"))
    assert student.student == hmkd.student
    assert student.data == teacher.data == hmkd.data
    assert hmkd.teacher.weights == "work_dirs/mine/teacher/student.safetensors"
    assert [getattr(hmkd.teacher, key) == getattr(teacher.student, key) for key in ("backbone", "head", "width")]
    assert hmkd.distill.type == "hmkd"
    assert (student.optimizer.lr, teacher.optimizer.lr) == (1e-3, 5e-4)


def test_nothing_is_overwritten(capsys):
    folder()
    assert main(["data/mine"]) == 0
    errors = refused(capsys)
    assert "data/mine/mine_train.txt, data/mine/mine_val.txt, configs/mine exists" in errors
    assert "--name" in errors
    assert main(["data/mine", "--name", "second"]) == 0
    assert Path("configs/second/hmkd.py").is_file()


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp"])
def test_every_image_format_is_read(suffix):
    folder(suffix, NAMES[:4])
    assert main(["data/mine"]) == 0


def test_images_of_16_bits_need_their_range(capsys):
    folder()
    for name in NAMES:
        save(Path(f"data/mine/images/{name}.png"), np.full(SIZE, 2048, np.uint16))
    assert refused(capsys).count("--image-range") == len(NAMES)
    assert main(["data/mine", "--image-range", "0", "4096"]) == 0
    config = load_config("configs/mine/student.py", Experiment)
    dataset = build_dataset(**config.data.options, list_file=config.data.train_list)
    assert (dataset.load_image(0) == 128).all()


def test_names_with_spaces_are_listed_with_a_tab():
    folder(names=["my street", "my house"])
    assert main(["data/mine"]) == 0
    listed = [Path(f"data/mine/mine_{split}.txt").read_text() for split in ("train", "val")]
    assert sorted(listed) == [f"images/my {name}.png\tmasks/my {name}.png\n" for name in ("house", "street")]


def test_an_image_that_is_also_in_val_is_named(capsys):
    for side, names in (("train", ["a", "b"]), ("val", ["c"])):
        masked(Path("data/mine"), f"{side}/images/{{}}.png", f"{side}/masks/{{}}.png", names)
    Path("data/mine/val/images/c.png").write_bytes(Path("data/mine/train/images/b.png").read_bytes())
    assert main(["data/mine"]) == 0
    errors = capsys.readouterr().err
    assert "1 images of train are also in val: train/images/b.png = val/images/c.png; " in errors


def test_an_unlabelled_image_that_is_also_in_val_is_refused(capsys):
    for side, names in (("train", ["a", "b"]), ("val", ["c"])):
        masked(Path("data/mine"), f"{side}/images/{{}}.png", f"{side}/masks/{{}}.png", names)
    image(Path("data/mine/more/d.png"), 9)
    assert main(["data/mine", "--unlabelled", "more/*", "--name", "first"]) == 0
    assert Path("data/mine/first_unlabelled.txt").read_text() == "more/d.png\n"
    capsys.readouterr()
    Path("data/mine/more/d.png").write_bytes(Path("data/mine/val/images/c.png").read_bytes())
    assert "unlabelled images are also in val: more/d.png = val/images/c.png" in refused(
        capsys, "--unlabelled", "more/*"
    )


def test_masks_from_which_nothing_can_be_learned_leave_nothing_behind(capsys):
    """Found when the written config is checked as training does; then what was written is removed."""
    for side, right in (("train", 1), ("val", 255)):
        mask = halves(255 if right == 255 else 0, right)
        masked(Path("data/mine"), f"{side}/images/{{}}.png", f"{side}/masks/{{}}.png", ["a", "b"], mask)
    assert "no mIoU can be measured" in refused(capsys)


def test_one_class_alone_is_refused(capsys):
    folder(mask=halves(0, 255))
    assert "only the class 'class_0'" in refused(capsys, "--ignore", "255")


def test_an_unlabelled_image_that_is_cut_off_is_refused(capsys):
    folder()
    damaged = image(Path("data/mine/more/x.png"), 99)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert "more/x.png cannot be decoded" in refused(capsys, "--unlabelled", "more/*")


def test_every_problem_is_named_and_counted(capsys):
    folder()
    for name in NAMES[:3]:
        save(Path(f"data/mine/masks/{name}.png"), halves(size=(8, 8)))
    errors = refused(capsys)
    assert errors.count("expected the same size") == 3
    assert "problems: 3; nothing was written" in errors


def test_a_test_set_without_masks_is_listed(capsys):
    for side in ("train", "val"):
        masked(Path("data/mine"), f"{side}/images/{{}}.png", f"{side}/masks/{{}}.png", ["a", "b"])
    image(Path("data/mine/test/images/t.png"), 9)
    image(Path("data/mine/old/x.png"), 9)
    assert main(["data/mine"]) == 0
    out = capsys.readouterr().out
    assert "data/mine: 2 train, 2 val, 1 test" in out
    assert "not used: 1 other pictures: old/x.png" in out
    assert Path("data/mine/mine_test.txt").read_text() == "test/images/t.png\n"
    assert load_config("configs/mine/student.py", Experiment).data.test_list == "mine_test.txt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["data/mine", "--val", "1"], "a share between 0 and 1"),
        (["data/mine", "--name", "a/b"], "--name a/b: expected letters"),
        (["data/mine", "--classes", "a", "b", "--colors", "c.txt"], "not allowed with argument"),
        (["camvid", "data/mine", "--val", "0.5"], "camvid FOLDER takes no flags"),
        (["data/mine", "--to-masks", "--name", "x"], "--to-masks takes FOLDER and --classes alone"),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    folder()
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_known_data_set_is_prepared_as_prepare_lists_does():
    for split in ("train", "val", "test"):
        masked(Path("camvid"), f"{split}/{{}}.png", f"{split}annot/{{}}.png", ["0"], halves(0, 9))
    assert main(["camvid", "camvid"]) == 0
    assert Path("camvid/train.txt").read_text() == "train/0.png trainannot/0.png\n"


def test_it_runs_as_a_file_from_any_folder(here):
    folder()
    command = [sys.executable, str(REPOSITORY / "scripts/prepare_data.py"), "data/mine"]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert found.returncode == 0, found.stderr
    assert "python train_kd.py configs/mine/hmkd.py --work-dir work_dirs/mine/hmkd" in found.stdout
    load_config("configs/mine/hmkd.py", Experiment)
