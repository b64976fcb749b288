"""The main job from end to end: it learns, it resumes exactly, it is the same on one process and on two."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_kd
from tests.conftest import ROOT


def metrics(work_dir):
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def losses(work_dir):
    return [line["loss"] for line in metrics(work_dir) if "loss" in line]


def weights(path):
    state = torch.load(path, weights_only=True)
    return {f"{part}.{name}": value for part in ("student", "method") for name, value in state[part].items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.fixture(scope="module")
def whole(experiments, tmp_path_factory):
    """An uninterrupted distillation run of six steps."""
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    train_kd.main([experiments["hmkd"], "--work-dir", str(work_dir)])
    return work_dir


def test_run_leaves_what_it_promises(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.py",
        "env.txt",
        "metrics.jsonl",
        "tensorboard",
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
    assert board.Tags()["images"] == ["val/panel"]
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


@pytest.mark.parametrize("stop", [1, 4])
def test_interrupted_and_resumed_run_equals_the_uninterrupted_one(whole, experiments, tmp_path, monkeypatch, stop):
    """A crash with worker processes running, after more was logged than saved: bit-exact all the same."""
    step = train_kd.Trainer.train_step

    def crash(self, *args):
        if self.step == stop + 1:
            raise RuntimeError("power cut")
        return step(self, *args)

    arguments = [
        experiments["hmkd"],
        "--work-dir",
        str(tmp_path),
        "--cfg-options",
        "data.workers=2",
        "checkpoint.interval=1",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(train_kd.Trainer, "train_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train_kd.main(arguments)
    # The step after the last checkpoint was logged already, and half a line of the next.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {stop + 2}, "loss": 1.0}}\n{{"step": {stop + 2}, "lo')
    train_kd.main([*arguments, "--resume", "auto"])
    assert metrics(tmp_path) == metrics(whole)
    assert_same(weights(tmp_path / "last.pt"), weights(whole / "last.pt"))


def test_resume_auto_starts_afresh_and_a_finished_run_stays(experiments, tmp_path):
    arguments = [experiments["alone"], "--work-dir", str(tmp_path), "--resume", "--cfg-options", "schedule.max_iters=2"]
    train_kd.main(arguments)
    before = metrics(tmp_path)
    train_kd.main(arguments)
    assert metrics(tmp_path) == before


def refused(arguments):
    with pytest.raises(SystemExit) as stop:
        train_kd.main([str(argument) for argument in arguments])
    assert str(stop.value).startswith("error: ")
    return str(stop.value)


def test_a_work_dir_that_holds_a_run_is_not_overwritten(whole, experiments):
    before = (whole / "metrics.jsonl").read_bytes()
    message = refused([experiments["hmkd"], "--work-dir", whole])
    assert "already holds a run" in message
    assert "--resume auto" in message
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_resuming_with_another_config_is_refused_by_key(whole, experiments):
    message = refused([experiments["hmkd"], "--work-dir", whole, "--resume", "--cfg-options", "optimizer.lr=0.5"])
    assert "optimizer.lr: 0.001 -> 0.5" in message


def test_resuming_from_a_truncated_checkpoint_names_it(whole, experiments, tmp_path):
    (tmp_path / "last.pt").write_bytes((whole / "last.pt").read_bytes()[:1000])
    assert "last.pt cannot be read as a checkpoint" in refused(
        [experiments["hmkd"], "--work-dir", tmp_path, "--resume"]
    )


def test_dry_run_prints_tables_and_writes_nothing(experiments, tmp_path, capsys):
    train_kd.main(
        [
            experiments["hmkd"],
            "--work-dir",
            str(tmp_path / "run"),
            "--dry-run",
            "--cfg-options",
            "teacher.weights=pretrained/absent.safetensors",
        ]
    )
    out = capsys.readouterr().out
    for word in ("teacher", "student", "GFLOPs at 32x48", "stage3:160@16", "feature", "stage_logit", "peak memory"):
        assert word in out
    assert not (tmp_path / "run").exists()


def test_teacher_no_better_than_chance_is_refused_unless_allowed(experiments, tmp_path):
    arguments = [experiments["hmkd"], "--work-dir", tmp_path, "--cfg-options", "train.verify_teacher=True"]
    assert "no better than chance (0.0909)" in refused(arguments)
    train_kd.main([str(a) for a in [*arguments, "train.allow_weak_teacher=True", "schedule.max_iters=1"]])
    assert "teacher_miou" in metrics(tmp_path)[0]


def test_missing_files_are_named_with_the_way_to_mend_it(experiments, tmp_path):
    run = [experiments["hmkd"], "--work-dir", tmp_path / "run", "--cfg-options"]
    assert "teacher.weights: pretrained/x.pth does not exist" in refused([*run, "teacher.weights=pretrained/x.pth"])
    assert "data root nowhere" in refused([*run, "data.root=nowhere"])
    assert not (tmp_path / "run").exists()


def test_non_finite_loss_stops_before_the_weights_change(experiments, tmp_path, monkeypatch):
    stages = []

    def poison(self, images, labels, forward=train_kd.Trainer.forward):
        terms = forward(self, images, labels)
        if self.step == 2:
            stages.append(
                {
                    name: value.clone()
                    for name, value in self.student.state_dict().items()
                    if "running" not in name and "num_batches" not in name
                }
            )
            terms["logit"] = terms["logit"] * float("nan")
            self.seen = self.student
        return terms

    kept = {}
    init = train_kd.Trainer.__init__
    monkeypatch.setattr(
        train_kd.Trainer, "__init__", lambda self, *a, **k: (init(self, *a, **k), kept.update(me=self))[0]
    )
    monkeypatch.setattr(train_kd.Trainer, "forward", poison)
    message = refused([experiments["hmkd"], "--work-dir", tmp_path])
    assert "step 2: not finite: logit;" in message
    assert "samples where it happened: " in message
    after = kept["me"].student.state_dict()
    assert [name for name in stages[0] if not torch.equal(stages[0][name], after[name])] == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_accumulation_and_clipping_run(experiments, tmp_path, precision):
    train_kd.main(
        [
            experiments["hmkd"],
            "--work-dir",
            str(tmp_path),
            "--cfg-options",
            f"train.precision={precision}",
            "train.accumulate=2",
            "train.grad_clip=1.0",
            "schedule.max_iters=3",
        ]
    )
    values = losses(tmp_path)
    assert len(values) == 3
    assert all(0 < value < 100 for value in values)


def test_two_ranks_see_and_learn_what_one_with_accumulation_does(experiments, tmp_path, launch):
    """Same samples, same dropout, same normalisation over all valid pixels: the same losses, to rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    train_kd.main(
        [experiments["hmkd"], "--work-dir", str(one), "--cfg-options", "train.accumulate=2", "schedule.max_iters=3"]
    )
    done = launch(
        "train_kd.py", experiments["hmkd"], "--work-dir", two, "--cfg-options", "schedule.max_iters=3", processes=2
    )
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for one_line, two_line in zip(metrics(one)[:3], metrics(two)[:3], strict=True):
        for term in ("task", "feature", "anchor", "relation", "logit", "stage_logit"):
            assert two_line[term] == pytest.approx(one_line[term], rel=1e-4, abs=1e-7), term


def test_two_ranks_resume_where_they_stopped(experiments, tmp_path, launch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--cfg-options", "schedule.max_iters=4", "train.accumulate=1"]
    assert launch("train_kd.py", experiments["hmkd"], "--work-dir", whole, *options, processes=2).returncode == 0
    parts.mkdir()
    (parts / "step_2.pt").write_bytes((whole / "step_2.pt").read_bytes())
    done = launch("train_kd.py", experiments["hmkd"], "--work-dir", parts, "--resume", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(parts) == losses(whole)[2:]
    assert_same(weights(parts / "last.pt"), weights(whole / "last.pt"))


def test_ctrl_c_saves_at_the_step_boundary(experiments, tmp_path):
    """The terminal sends it to the whole process group, the loader's workers included."""
    command = [
        sys.executable,
        "train_kd.py",
        experiments["alone"],
        "--work-dir",
        str(tmp_path),
        "--cfg-options",
        "schedule.max_iters=100000",
        "checkpoint.interval=100000",
        "eval.interval=100000",
        "data.workers=1",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    path = tmp_path / "metrics.jsonl"
    for _ in range(600):
        if path.is_file() and len(path.read_text().splitlines()) >= 3:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, err
    step = torch.load(tmp_path / "last.pt", weights_only=True)["step"]
    assert f"stopped at step {step}" in out
    assert "Traceback" not in err
    assert metrics(tmp_path)[-1]["step"] == step


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        train_kd.parse_arguments(["--help"])
    out = capsys.readouterr().out
    assert "torchrun --nproc_per_node=4 train_kd.py" in out
    assert "--resume" in out
