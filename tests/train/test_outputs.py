"""What a finished run leaves in its folder, and what the files hold."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_kd
from models import load_student
from tests.runs import assert_same, losses, metrics


def test_run_leaves_what_it_promises(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.py",
        "env.txt",
        "metrics.jsonl",
        "tensorboard",
        "train.log",
        "last.pt",
        "best.pt",
        "student.safetensors",
        "step_4.pt",
        "step_5.pt",
        "step_6.pt",
    }
    assert "torch: " + torch.__version__.split("+")[0] in (whole / "env.txt").read_text()
    lines = metrics(whole)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "miou" in line] == [3, 6]
    terms = {"task", "feature", "anchor", "relation", "relation_anchor", "logit", "stage_logit"}
    assert terms <= lines[0].keys()
    assert [set(line["grad_norm"]) for line in lines if "grad_norm" in line] == [terms]


def test_loss_is_the_weighted_sum_of_its_terms(whole):
    for line in metrics(whole):
        if "loss" in line:
            total = sum(line[k] for k in ("task", "feature", "anchor", "relation", "relation_anchor", "logit"))
            assert line["loss"] == pytest.approx(total + 0.5 * line["stage_logit"], rel=1e-6)


@pytest.mark.parametrize("name", ["student.safetensors", "best.pt"])
def test_the_student_is_rebuilt_from_its_file_alone(whole, name):
    model, about = load_student(whole / name)
    best = max((line for line in metrics(whole) if "miou" in line), key=lambda line: line["miou"])
    assert (about["step"], about["miou"]) == (best["step"], best["miou"])
    assert about["network"]["backbone"] == "mit_b0"
    assert len(about["class_names"]) == len(about["palette"]) == model.num_classes == 11
    assert not model.training
    saved = torch.load(whole / "best.pt", weights_only=True)["student"]
    assert_same(model.state_dict(), saved)


def test_only_files_of_ours_rebuild_a_student(teacher_weights, tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.safetensors does not say .*: its metadata has no network"):
        load_student(teacher_weights)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist"):
        load_student(tmp_path / "nothing.safetensors")


def test_a_curriculum_changes_weights_and_nothing_else(experiments, whole, tmp_path):
    """The logit term's weight: 0, .25, .5 in the first three steps; the terms of the first step are as they were."""
    schedule = "curriculum={'logit': {'type': 'linear', 'iters': 4}}"
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", schedule, "schedule.max_iters=3"])
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    for line, weight in zip(lines, (0.0, 0.25, 0.5), strict=True):
        rest = sum(line[k] for k in ("task", "feature", "anchor", "relation", "relation_anchor"))
        assert line["loss"] == pytest.approx(rest + 0.5 * line["stage_logit"] + weight * line["logit"], rel=1e-6)
    assert lines[0]["logit"] == metrics(whole)[0]["logit"]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("weight/logit")] == [0, 0.25, 0.5]


def test_a_curriculum_of_no_term_is_refused(experiments, tmp_path):
    schedule = "curriculum={'logits': {'type': 'linear', 'iters': 4}}"
    with pytest.raises(SystemExit, match="curriculum: there is no loss term 'logits'; choose from task, feature"):
        train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", schedule])


def test_anchors_send_no_gradient_to_the_student(whole):
    norms = next(line["grad_norm"] for line in metrics(whole) if "grad_norm" in line)
    assert norms["anchor"] == norms["relation_anchor"] == 0
    assert min(norms[k] for k in ("task", "feature", "logit", "stage_logit")) > 0


def test_tensorboard_holds_curves_and_the_panel(whole):
    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    wanted = {
        "train/loss",
        "train/feature",
        "train/lr",
        "train/images_per_s",
        "train/peak_memory_mib",
        "weight/feature",
        "grad_norm/feature",
        "val/miou",
        "val_iou/Sky",
    }
    assert wanted <= set(board.Tags()["scalars"])
    assert sorted(board.Tags()["images"]) == ["train/batch", "val/panel"]
    logged = [event.value for event in board.Scalars("train/loss")]
    assert logged == pytest.approx(losses(whole))


def test_student_file_rebuilds_the_best_student_without_the_teacher(whole):
    best = torch.load(whole / "best.pt", weights_only=True)
    with safe_open(whole / "student.safetensors", "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert about["network"]["backbone"] == "mit_b0"
    assert about["miou"] == max(line["miou"] for line in metrics(whole) if "miou" in line) == best["best"]["miou"]
    assert about["class_names"][0] == "Sky"
    tensors = load_file(whole / "student.safetensors")
    assert_same(tensors, best["student"])
    assert not any("teacher" in name for name in [*best["student"]])
