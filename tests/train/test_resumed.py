"""An interrupted run that is resumed equals the uninterrupted one, bit for bit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import train_kd
from configs.schema import Experiment
from engine.build import build_student
from engine.checkpoint import save_checkpoint
from engine.data import build_split
from engine.evaluation import evaluate
from engine.log import RunLog
from engine.run import Run
from engine.teacher import build_teacher
from engine.trainer import Trainer
from scripts.street.scene import write_synthetic
from tests.runs import PowerCutError, assert_same, losses, metrics, refused, weights
from utils.config import load_config


@pytest.mark.parametrize(("where", "step"), [("train_step", 1), ("train_step", 5), ("validation", 3)])
def test_interrupted_and_resumed_run_equals_the_uninterrupted_one(
    whole, experiments, tmp_path, monkeypatch, where, step
):
    """Cut before the first checkpoint, between two, and in a validation after its best.pt: bit-exact all the same."""
    owner = {"train_step": Trainer, "validation": RunLog}[where]
    original = getattr(owner, where)

    def cut(self, *args, **kwargs):
        if (self.step if where == "train_step" else args[0]) == step:
            raise PowerCutError
        return original(self, *args, **kwargs)

    options = ["data.workers=2", "checkpoint.interval=2"]
    arguments = [experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options]
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, cut)
        with pytest.raises(PowerCutError):
            train_kd.main(arguments)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step + 1}, "lo')  # half a line of what came next
    train_kd.main([*arguments, "--resume", "auto"])
    assert metrics(tmp_path) == metrics(whole)
    assert_same(weights(tmp_path / "last.pt"), weights(whole / "last.pt"))
    assert_same(weights(tmp_path / "best.pt"), weights(whole / "best.pt"))


def test_a_finished_checkpoint_in_a_new_folder_is_validated_again(whole, experiments, tmp_path):
    """Its best weights stayed behind, so the last ones are the best that are here."""
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--resume", str(whole / "step_6.pt")])
    assert [line["step"] for line in metrics(tmp_path)] == [6]
    assert_same(
        load_file(tmp_path / "student.safetensors"), torch.load(whole / "last.pt", weights_only=True)["student"]
    )


def test_going_on_from_a_checkpoint_of_another_folder(whole, experiments, tmp_path):
    source = str(whole / "step_5.pt")
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path / "new"), "--resume", source])
    assert losses(tmp_path / "new") == losses(whole)[5:]
    assert_same(weights(tmp_path / "new" / "last.pt"), weights(whole / "last.pt"))
    # Into the folder itself it would leave a gap in the log and a newer last.pt behind.
    assert "is at step 6 already" in refused([experiments["hmkd"], "--work-dir", whole, "--resume", source])


def test_resume_auto_starts_afresh_and_a_finished_run_stays(experiments, tmp_path):
    arguments = [experiments["alone"], "--work-dir", str(tmp_path), "--resume", "--cfg-options", "schedule.max_iters=2"]
    train_kd.main(arguments)
    before = metrics(tmp_path)
    train_kd.main(arguments)
    assert metrics(tmp_path) == before


def test_a_work_dir_that_holds_a_run_is_not_overwritten(whole, experiments):
    before = (whole / "metrics.jsonl").read_bytes()
    message = refused([experiments["hmkd"], "--work-dir", whole])
    assert "already holds a run" in message
    assert "--resume auto" in message
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_from_before_a_key_was_there_has_its_default(whole, experiments, tmp_path):
    state = torch.load(whole / "step_5.pt", weights_only=True)
    del state["config"]["teacher"]["cache_taps"], state["config"]["data"]["seed"]
    save_checkpoint(state, tmp_path / "older.pt")
    arguments = [experiments["hmkd"], "--work-dir", str(tmp_path / "run"), "--resume", str(tmp_path / "older.pt")]
    assert "data.seed: None -> 1" in refused([*arguments, "--cfg-options", "data.seed=1"])
    train_kd.main(arguments)
    assert losses(tmp_path / "run") == losses(whole)[5:]


def assert_measured_again(folder, config, said, options):
    """The best student and the teacher have the mIoU that eval.py's function gives under the new protocol."""
    state, log = torch.load(folder / "best.pt", weights_only=True), metrics(folder)
    config = load_config(config, Experiment, options)
    dataset = build_split(config, "", "val")
    student, _ = build_student(config, "", dataset.class_names, pretrained=False)
    student.load_state_dict(state["student"])
    expected = evaluate(student, dataset, device="cpu", **config.eval.protocol).miou
    assert state["best"]["miou"] == state["about"]["miou"] == expected
    teacher = build_teacher(config, "", dataset.class_names)
    expected = evaluate(teacher, dataset, device="cpu", **config.eval.protocol).miou
    assert [line["teacher_miou"] for line in log if "teacher_miou" in line][-1] == expected
    [marked] = [line for line in log if line.get("new_protocol")]
    assert (marked["best_step"], marked["best_miou"]) == (state["best"]["step"], state["best"]["miou"])
    assert [line.keys() & {"teacher_miou", "miou"} for line in log[log.index(marked) + 1 :]] == [{"teacher_miou"}]
    assert "so the best student and the teacher are measured again:" in said


@pytest.mark.parametrize("change", ["eval.scales=(1.5,)", "data.root", "data.val_list"])
def test_another_validation_is_said_and_the_best_and_the_teacher_are_measured_again(
    experiments, streets, tmp_path, capsys, change
):
    """Other scales; another folder with the same names; fewer images. The run ends with the best student it had."""
    config, old, new = experiments["hmkd"], tmp_path / "old", tmp_path / "new"
    options = ["train.verify_teacher=True", "train.allow_weak_teacher=True", "log.panel_images=0"]
    train_kd.main([config, "--work-dir", str(old), "--cfg-options", *options, "schedule.max_iters=3"])
    best = torch.load(old / "best.pt", weights_only=True)
    if change == "data.root":
        write_synthetic(tmp_path / "other", train=8, val=5, size=(48, 64), seed=5)
        change = f"data.root={tmp_path / 'other'}"
    elif change == "data.val_list":
        (streets / "two.txt").write_text("".join((streets / "val.txt").read_text().splitlines(keepends=True)[:2]))
        change = "data.val_list=two.txt"
    shutil.copytree(old, new)
    options += ["schedule.max_iters=3", change]
    capsys.readouterr()
    train_kd.main([config, "--work-dir", str(new), "--resume", "--force", "--cfg-options", *options])
    said = capsys.readouterr().out
    assert change.partition("=")[0] + ": " in said
    assert_measured_again(new, config, said, options)
    again = torch.load(new / "best.pt", weights_only=True)
    assert again["best"]["miou"] != best["best"]["miou"]
    assert_same(again["student"], best["student"])
    assert_same(weights(new / "last.pt"), weights(old / "last.pt"))
    train_kd.main([config, "--work-dir", str(new), "--resume", "--force", "--cfg-options", *options])
    assert "measured again" not in capsys.readouterr().out


def test_two_processes_measure_the_best_and_the_teacher_again_as_one_does(whole, experiments, tmp_path, launch):
    shutil.copytree(whole, tmp_path / "run")
    options = ["train.verify_teacher=True", "train.allow_weak_teacher=True", "eval.scales=(1.5,)"]
    arguments = [experiments["hmkd"], "--work-dir", tmp_path / "run", "--resume", "--force", "--cfg-options", *options]
    run = launch("train_kd.py", *arguments, processes=2)
    assert run.returncode == 0, run.stderr
    assert_measured_again(tmp_path / "run", experiments["hmkd"], run.stdout, options)


def test_the_same_data_in_another_folder_are_the_same_validation(whole, experiments, streets, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(streets, tmp_path / "moved")
    options = [f"data.root={tmp_path / 'moved'}"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path / "run"), "--resume", "--cfg-options", *options])
    said = capsys.readouterr().out
    assert f"with a changed config:\n  data.root: '{streets}' -> '{tmp_path / 'moved'}'" in said
    assert "measured again" not in said


@pytest.mark.parametrize(("teacher", "times"), [(-0.5, 1), (2.0, 0)])
def test_a_teacher_behind_its_student_is_said_once(experiments, tmp_path, monkeypatch, capsys, teacher, times):
    monkeypatch.setattr(Run, "verify_teacher", lambda self: setattr(self, "teacher_miou", teacher))
    options = ["train.verify_teacher=True", "eval.interval=1", "schedule.max_iters=2", "log.panel_images=0"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    assert capsys.readouterr().out.count("is better than its teacher") == times
