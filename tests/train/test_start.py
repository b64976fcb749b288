"""What is checked before the first step, and the dry run."""

import shutil

import numpy as np
import pytest
from PIL import Image

import train_kd
from engine.checkpoint import save_student
from models import build_model
from tests.runs import metrics, refused


def test_dry_run_prints_tables_and_writes_nothing(experiments, tmp_path, capsys):
    train_kd.main(
        [
            experiments["hmkd"],
            "--work-dir",
            str(tmp_path / "run"),
            "--dry-run",
        ]
    )
    out = capsys.readouterr().out
    stages = [line.partition(":")[0] for line in out.splitlines()[:5]]
    assert stages == ["data", "student", "teacher", "method", "step"]
    for word in ("teacher", "student", "GFLOPs at 32x48", "stage3:160@16", "feature", "stage_logit", "peak memory"):
        assert word in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["teacher.weights", "student.pretrained"])
def test_a_dry_run_fails_without_weights_or_with_wrong_ones(experiments, tmp_path, key):
    """No file, a network of other classes, a network of another layout."""
    dry_run = [experiments["hmkd"], "--work-dir", tmp_path / "run", "--dry-run", "--cfg-options"]
    assert f"{key}: weights file nowhere.pth does not exist" in refused([*dry_run, f"{key}=nowhere.pth"])
    others = {"classes": ("test_resnet", 3, "trained on 3 classes"), "layout": ("resnet18", 11, "does not fit")}
    for name, (backbone, classes, message) in others.items():
        model = build_model(backbone, "deeplabv3", classes, output_stride=16, width=8)
        save_student(tmp_path / name, model.state_dict(), {})
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
        if (name, key) != ("classes", "student.pretrained"):  # only the backbone is loaded, which has no classes
            found = refused([*dry_run, f"{key}={tmp_path / name}.safetensors"])
            assert key in found
            assert message in found
    assert not (tmp_path / "run").exists()


def test_teacher_no_better_than_chance_is_refused_unless_allowed(experiments, tmp_path):
    arguments = [experiments["hmkd"], "--work-dir", tmp_path, "--cfg-options", "train.verify_teacher=True"]
    assert "no better than chance (9.09%)" in refused(arguments)
    train_kd.main([str(a) for a in [*arguments, "train.allow_weak_teacher=True", "schedule.max_iters=1"]])
    assert "teacher_miou" in metrics(tmp_path)[0]


def test_missing_files_are_named_with_the_way_to_mend_it(experiments, tmp_path):
    run = [experiments["hmkd"], "--work-dir", tmp_path / "run", "--cfg-options"]
    assert "teacher.weights: weights file pretrained/x.pth does not exist" in refused(
        [*run, "teacher.weights=pretrained/x.pth"]
    )
    assert "data root nowhere" in refused([*run, "data.root=nowhere"])
    assert "train.batch_size: batch_size 4 (global) cannot be divided evenly" in refused([*run, "train.accumulate=3"])
    assert not (tmp_path / "run").exists()


def test_validation_set_without_labels_is_refused(experiments, streets, tmp_path):
    names = [line.split()[0] for line in (streets / "val.txt").read_text().splitlines()]
    (streets / "unlabelled.txt").write_text("\n".join(names))
    message = refused([experiments["alone"], "--work-dir", tmp_path, "--cfg-options", "data.val_list=unlabelled.txt"])
    assert "data.val_list: unlabelled.txt has images without labels" in message


@pytest.fixture
def masks(streets, tmp_path):
    """Binary masks as editors write them: the road is 255, the rest 0. And a config that reads 0 and 1."""
    for split in ("train", "val"):
        for line in (streets / f"{split}.txt").read_text().splitlines():
            image, label = line.split()
            (tmp_path / label).parent.mkdir(exist_ok=True)
            (tmp_path / image).parent.mkdir(exist_ok=True)
            shutil.copy(streets / image, tmp_path / image)
            Image.fromarray(255 * (np.array(Image.open(streets / label)) == 3).astype(np.uint8)).save(tmp_path / label)
        shutil.copy(streets / f"{split}.txt", tmp_path)
    config = tmp_path / "config.py"
    config.write_text(
        f"data = dict(type='list', root={str(tmp_path)!r}, class_names=['rest', 'road'], "
        "crop_size=(32, 48), workers=0)\n"
        "student = dict(backbone='test_resnet', head='deeplabv3', width=8)\noptimizer = dict(type='sgd', lr=0.01)\n"
        "schedule = dict(max_iters=1)\ntrain = dict(batch_size=2, precision='fp32')\nlog = dict(panel_images=0)\n"
    )
    return config


def test_masks_of_0_and_255_are_refused_with_the_table_and_train_with_it(masks, tmp_path, capsys):
    run = [masks, "--work-dir", tmp_path / "run"]
    message = refused(run)
    assert f"{masks}: data.train_list: all labelled pixels are 'rest'" in message
    assert message.endswith("where 255 is 'road', set data.id_table={0: 0, 255: 1}")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    train_kd.main([*map(str, run), "--cfg-options", "data.id_table={0: 0, 255: 1}"])
    assert "WARNING" not in capsys.readouterr().out
    assert 0 < metrics(tmp_path / "run")[-1]["miou"] < 1


def test_every_rank_refuses_labels_that_teach_nothing(masks, tmp_path, launch):
    run = launch("train_kd.py", masks, "--work-dir", tmp_path / "run", processes=2)
    assert run.returncode == 1
    assert "set data.id_table={0: 0, 255: 1}" in run.stderr


def test_a_surplus_class_is_named_at_start_and_beside_the_miou(masks, tmp_path, capsys):
    options = ["data.id_table={0: 0, 255: 1, 2: 2}", "data.class_names=['rest', 'road', 'rail']", "train.seed=1"]
    train_kd.main([str(masks), "--work-dir", str(tmp_path / "run"), "--cfg-options", *options])
    out = capsys.readouterr().out
    assert "WARNING: no pixel in the training labels: 'rail'; it cannot be learned" in out
    assert "WARNING: no pixel in the validation labels: 'rail'; mIoU is over the other 2 of 3 classes" in out


def test_a_validation_set_that_is_void_is_refused_before_the_first_step(masks, tmp_path):
    for line in (tmp_path / "val.txt").read_text().splitlines():
        label = tmp_path / line.split()[1]
        Image.fromarray(np.full_like(np.array(Image.open(label)), 9)).save(label)
    options = ["--cfg-options", "data.id_table={0: 0, 255: 1, 9: 255}"]
    message = refused([masks, "--work-dir", tmp_path / "run", *options])
    assert "data.val_list: none of the 5 labels holds a pixel with a class" in message


@pytest.fixture
def tiny(streets, tmp_path):
    """The streets, with one validation image of 20 x 30 pixels."""
    shutil.copytree(streets, tmp_path / "tiny")
    files = [tmp_path / "tiny" / name for name in (streets / "val.txt").read_text().splitlines()[2].split()]
    for path in files:
        Image.open(path).crop((0, 0, 30, 20)).save(path)
    return tmp_path / "tiny", files[0]


def test_a_validation_image_that_is_too_small_is_refused_before_the_first_step(experiments, tiny, tmp_path):
    root, image = tiny
    run = [experiments["alone"], "--work-dir", tmp_path / "run", "--cfg-options", f"data.root={root}"]
    assert f"alone.py: data.val_list: {image} is too small for the student: the image has 20 x 30 pixels" in refused(
        run
    )
    assert not (tmp_path / "run/metrics.jsonl").exists()
    train_kd.main([*map(str, run), "eval.scales=(1.45, 2.0)", "schedule.max_iters=1", "log.panel_images=0"])
    teacher = ["teacher.backbone=mit_b0", "teacher.head=segformer", "teacher.output_stride=32", "teacher.width=16"]
    save_student(tmp_path / "mit", build_model("mit_b0", "segformer", 11, width=16).state_dict(), {})
    (tmp_path / "mit").rename(tmp_path / "mit.safetensors")
    teacher += [f"teacher.weights={tmp_path / 'mit.safetensors'}", "train.verify_teacher=True"]
    student = ["student.backbone=resnet18", "student.output_stride=16", "student.drop_path=0.0"]
    message = refused([experiments["hmkd"], "--work-dir", tmp_path / "other", *run[3:], *teacher, *student])
    assert f"{image} is too small for the teacher" in message


def test_a_crop_that_is_too_small_is_refused_with_the_keys_that_help(experiments, tmp_path):
    run = [experiments["hmkd"], "--work-dir", tmp_path / "run", "--cfg-options"]
    message = refused([*run, "data.crop_size=(28, 64)"])
    assert "data.crop_size: the student cannot run on 4 image(s) of 28 x 64 pixels at a time" in message
    assert message.endswith("set data.crop_size=(29, 29) or larger")
    one = ["data.crop_size=(32, 32)", "train.accumulate=4", "student.output_stride=32", "student.drop_path=0.0"]
    message = refused([*run, *one, "student.backbone=resnet18", "student.head=deeplabv3"])
    assert "the student cannot run on 1 image(s) of 32 x 32 pixels at a time (Expected more than 1 value" in message
    for key in ("data.crop_size=(33, 33)", "train.batch_size", "train.accumulate", "student.output_stride"):
        assert key in message


@pytest.mark.parametrize("option", ["normalization=caffe_bgr", "output_stride=8"])
def test_teacher_trained_with_other_settings_is_refused(whole, experiments, tmp_path, option):
    """No tensor tells these apart, only the metadata of the file."""
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = [{experiments['hmkd']!r}]\n"
        "student = dict(_delete_=True, backbone='test_resnet', head='deeplabv3', output_stride=16, width=8)\n"
        "teacher = None\ndistill = None\nschedule = dict(max_iters=1)\n"
    )
    train_kd.main([str(config), "--work-dir", str(tmp_path / "teacher")])
    weights = f"teacher.weights={tmp_path / 'teacher' / 'student.safetensors'}"
    arguments = [experiments["hmkd"], "--work-dir", tmp_path / "run", "--dry-run", "--cfg-options", weights]
    train_kd.main([str(argument) for argument in arguments])
    arguments.remove("--dry-run")
    message = refused([*arguments, f"teacher.{option}"])
    assert "teacher.weights" in message
    assert {"normalization=caffe_bgr": "set normalization='imagenet'", "output_stride=8": "trained with tap"}[
        option
    ] in message


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        train_kd.parse_arguments(["--help"])
    out = capsys.readouterr().out
    assert "torchrun --nproc_per_node=4 train_kd.py" in out
    assert "--resume" in out
