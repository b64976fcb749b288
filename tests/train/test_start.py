"""What is checked before the first step, and the dry run."""

import pytest

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
