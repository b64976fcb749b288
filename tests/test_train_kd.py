"""The main job from end to end: it learns, it resumes exactly, it is the same on one process and on two."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partialmethod

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.data import get_worker_info

import train_kd
from datasets import build_dataset
from datasets.base import SegDataset, TrainStream
from datasets.transforms import TrainTransform
from engine.checkpoint import save_checkpoint
from engine.log import RunLog
from engine.teacher_cache import TeacherCache
from engine.trainer import Trainer
from models import load_student
from tests.conftest import ROOT

TRANSFORM = {"crop_size": (32, 48), "scale_range": (0.8, 1.2), "photometric": True}  # as the experiments have it


def metrics(work_dir):
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def losses(work_dir):
    return [line["loss"] for line in metrics(work_dir) if "loss" in line]


def weights(path):
    state = torch.load(path, weights_only=True)
    return {f"{part}.{name}": value for part in ("student", "method") for name, value in state[part].items()}


def learnt(tensors):
    """Without running statistics, which follow every forward pass."""
    return {name: value for name, value in tensors.items() if "running_" not in name and "batches_tracked" not in name}


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
    with pytest.raises(ValueError, match=r"teacher\.safetensors does not say how its network is built \(no network"):
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


class PowerCutError(Exception):
    """Nobody catches it: as abrupt as a crash within one process can be."""


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


def test_a_bad_file_in_a_worker_process_ends_the_run(experiments, streets, tmp_path, launch):
    """Workers outlive signals for a while, but not the run: it must exit, not wait for them."""
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    label = root / (root / "train.txt").read_text().split()[1]
    label.write_bytes(label.read_bytes()[:100])
    options = ["--cfg-options", f"data.root={root}", "data.workers=2"]
    done = launch("train_kd.py", experiments["alone"], "--work-dir", tmp_path / "run", *options)
    assert done.returncode == 1
    assert f"error: {label} cannot be decoded" in done.stderr
    assert "Traceback" not in done.stderr


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(3600)


@pytest.mark.parametrize(
    ("fault", "seconds", "said"),
    [
        (die, 60, r"DataLoader worker \(pid \d+\) is killed by signal: Killed"),
        (hang, 2, "DataLoader timed out"),
    ],
)
@pytest.mark.parametrize("when", ["training", "validation"])
def test_a_worker_that_dies_or_hangs_ends_the_run(experiments, tmp_path, monkeypatch, fault, seconds, said, when):
    """At the third image that it reads."""

    def open_(self, index, whole=SegDataset.open, opened=[0]):  # noqa: B006  # each worker counts for itself
        opened[0] += 1
        if get_worker_info() and ("val" in self.files[index][0].parts) == (when == "validation") and opened[0] > 2:
            fault()
        return whole(self, index)

    monkeypatch.setattr(SegDataset, "open", open_)
    options = [*SHORT, "data.workers=1", "eval.interval=2", "checkpoint.interval=1", f"train.timeout={seconds}"]
    with pytest.raises(SystemExit) as stop:
        train_kd.main([experiments["alone"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    assert re.match(
        rf"error: a process that loads data died .*, or gave nothing within {seconds} s \(train.timeout\)\. "
        rf".*{said}.*--resume auto resumes from the last checkpoint$",
        stop.value.code,
    )
    assert multiprocessing.active_children() == []


@pytest.fixture
def spoilt(streets, tmp_path):
    """The streets with two of the eight training labels empty; gives the folder and the two names."""
    root = tmp_path / "spoilt"
    shutil.copytree(streets, root)
    labels = [root / line.split()[1] for line in (root / "train.txt").read_text().splitlines()[2:4]]
    for label in labels:
        label.write_bytes(b"")
    return root, [label.stem for label in labels]


SHORT = ["schedule.max_iters=4", "log.panel_images=0", "log.grad_norm_interval=0"]


def test_bad_samples_are_replaced_and_a_resumed_run_replaces_them_alike(experiments, spoilt, tmp_path, capsys):
    """Two epochs of eight samples: each bad one comes twice, and is said once."""
    root, names = spoilt
    options = ["--cfg-options", f"data.root={root}", *SHORT, "data.on_bad_sample=skip"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_kd.main([experiments["alone"], "--work-dir", str(whole), *options])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert [line.split(": ")[0] for line in said] == [f"skipped ({n} of 8 samples so far)" for n in (1, 2)]
    for name in names:
        assert sum(f": {name}: " in line and "it is empty: 0 bytes" in line for line in said) == 1
    counts = {line["step"]: line["skipped_samples"] for line in metrics(whole) if "skipped_samples" in line}
    assert sum(counts.values()) == 4
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert sum(event.value for event in events.Scalars("train/skipped_samples")) == 4

    parts.mkdir()
    (parts / "step_2.pt").write_bytes((whole / "step_2.pt").read_bytes())
    resumed = [*options, "data.workers=2"]
    train_kd.main([experiments["alone"], "--work-dir", str(parts), "--resume", str(parts / "step_2.pt"), *resumed])
    assert losses(parts) == losses(whole)[2:]
    assert_same(weights(parts / "last.pt"), weights(whole / "last.pt"))
    assert {line["step"]: line["skipped_samples"] for line in metrics(parts) if "skipped_samples" in line} == {
        step: count for step, count in counts.items() if step > 2
    }


def test_a_run_that_is_stopped_says_what_it_skipped_since_the_last_log_entry(
    experiments, spoilt, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(train_kd.StopSignals, "received_by_any", lambda self, world: signal.SIGTERM)
    options = [f"data.root={spoilt[0]}", *SHORT, "data.on_bad_sample=skip", "train.batch_size=8", "log.interval=100"]
    with pytest.raises(SystemExit) as stop:
        train_kd.main([experiments["alone"], "--work-dir", str(tmp_path / "run"), "--cfg-options", *options])
    out = capsys.readouterr().out
    assert (stop.value.code, "stopped at step 1" in out) == (128 + signal.SIGTERM, True)
    assert all(out.count(f": {name}: ") == 1 for name in spoilt[1])


def test_two_ranks_skip_the_same_samples_and_count_them_together(experiments, spoilt, tmp_path, launch):
    root, names = spoilt
    options = ["--cfg-options", f"data.root={root}", *SHORT, "data.on_bad_sample=skip"]
    train_kd.main([experiments["alone"], "--work-dir", str(tmp_path / "one"), *options, "train.accumulate=2"])
    done = launch("train_kd.py", experiments["alone"], "--work-dir", tmp_path / "two", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert all(done.stdout.count(f": {name}: ") == 1 for name in names)
    one, two = ([line for line in metrics(tmp_path / run) if "skipped_samples" in line] for run in ("one", "two"))
    assert one == two
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_validation_sample_is_never_skipped(experiments, spoilt, tmp_path):
    root, _ = spoilt
    label = root / (root / "val.txt").read_text().split()[1]
    label.write_bytes(b"")
    options = ["--cfg-options", f"data.root={root}", *SHORT, "data.on_bad_sample=skip"]
    message = refused([experiments["alone"], "--work-dir", str(tmp_path / "run"), *options])
    assert f"{label} cannot be decoded (it is empty: 0 bytes)" in message


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
    assert "teacher.weights: weights file pretrained/x.pth does not exist" in refused(
        [*run, "teacher.weights=pretrained/x.pth"]
    )
    assert "data root nowhere" in refused([*run, "data.root=nowhere"])
    assert "train.batch_size: batch_size 4 (global) cannot be shared evenly" in refused([*run, "train.accumulate=3"])
    assert not (tmp_path / "run").exists()


def test_validation_set_without_labels_is_refused(experiments, streets, tmp_path):
    names = [line.split()[0] for line in (streets / "val.txt").read_text().splitlines()]
    (streets / "unlabelled.txt").write_text("\n".join(names))
    message = refused([experiments["alone"], "--work-dir", tmp_path, "--cfg-options", "data.val_list=unlabelled.txt"])
    assert "data.val_list: unlabelled.txt has images without labels" in message


@pytest.mark.parametrize("option", ["normalization=caffe_bgr", "output_stride=8"])
def test_teacher_trained_with_other_settings_is_refused(whole, experiments, tmp_path, option):
    """No tensor tells these apart, only what the file says of itself."""
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


def test_non_finite_loss_stops_before_the_weights_change(experiments, streets, tmp_path, monkeypatch):
    seen = {}

    def poison(self, *batch, forward=Trainer.forward):
        terms = forward(self, *batch)
        if self.step == 2:
            seen.update(student=self.student, before={k: p.clone() for k, p in self.student.named_parameters()})
            terms["logit"] = terms["logit"] * float("nan")
        return terms

    monkeypatch.setattr(Trainer, "forward", poison)
    message = refused([experiments["hmkd"], "--work-dir", tmp_path])
    assert "step 2: not finite: logit;" in message
    # Step 2 of batches of 4 holds the positions 8..11 of the stream.
    stream = TrainStream(build_dataset("camvid", streets, "train.txt"), TrainTransform((32, 48)), seed=0)
    names = ", ".join(stream.dataset.names[stream.index(position)] for position in range(8, 12))
    assert f"samples where it happened: {names} (rank 0);" in message
    assert_same(seen["before"], dict(seen["student"].named_parameters()))


def test_a_non_finite_gradient_stops_before_the_weights_change_and_is_kept(experiments, streets, tmp_path, monkeypatch):
    """The term has a value, 0, and the gradient 0 * inf; the third step's, of the positions 8..11 of the stream."""

    def poison(self, images, labels, positions, forward=Trainer.forward):
        terms = forward(self, images, labels, positions)
        if 9 in positions:
            terms["feature"] = terms["feature"] + (terms["logit"] - terms["logit"]).sqrt()
        return terms

    monkeypatch.setattr(Trainer, "forward", poison)
    options = ["--cfg-options", "train.accumulate=2"]
    message = refused([experiments["hmkd"], "--work-dir", tmp_path, *options])
    stream = TrainStream(build_dataset("camvid", streets, "train.txt"), TrainTransform(**TRANSFORM), seed=0)
    names = [stream.dataset.names[stream.index(position)] for position in (8, 9)]
    assert "step 2: not finite: the gradient of feature; " in message
    assert f"samples where it happened: {', '.join(names)} (rank 0); no optimizer step was taken" in message
    path = tmp_path / "crash" / "step_2_rank_0.pt"
    assert f"{path} holds the batch" in message
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    dump = torch.load(path, weights_only=True)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["step"] == 2
    assert_same(learnt(weights(path)), learnt(weights(tmp_path / "last.pt")))
    assert (dump["step"], dump["rank"], dump["precision"], dump["loss_scale"]) == (2, 0, "float32", 1.0)
    assert dump["weights"]["stage_logit"] == 0.5
    assert all(map(math.isfinite, dump["terms"].values()))
    bad, good = dump["micro_batches"]
    assert (bad["name"], bad["position"].tolist(), good["position"].tolist()) == (names, [8, 9], [10, 11])
    assert torch.equal(bad["image"], torch.stack([stream[position]["image"] for position in (8, 9)]))
    assert torch.equal(bad["label"], torch.stack([stream[position]["label"] for position in (8, 9)]))
    assert [name for name, norm in bad["gradient_norms"].items() if not math.isfinite(norm)] == ["feature"]
    assert all(map(math.isfinite, good["gradient_norms"].values()))
    assert good["gradient_norms"].keys() == dump["weights"].keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_accumulation_and_clipping(whole, experiments, tmp_path, precision):
    options = [f"train.precision={precision}", "train.accumulate=2", "train.grad_clip=1.0", "schedule.max_iters=3"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    first, reference = metrics(tmp_path)[0]["task"], metrics(whole)[0]["task"]
    assert first == pytest.approx(reference, rel=0.05)  # the same first batch ...
    assert first != reference  # ... computed otherwise
    assert len(losses(tmp_path)) == 3
    scaling = [(line["loss_scale"], line["skipped_steps"]) for line in metrics(tmp_path) if "loss_scale" in line]
    # Gradients of this network overflow at the scales 65536 and 32768.
    assert scaling == ([(32768.0, 1), (16384.0, 2), (16384.0, 2)] if precision == "fp16" else [])
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["skipped_steps"] == (2 if precision == "fp16" else 0)


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
        for term in ("task", "feature", "anchor", "relation", "relation_anchor", "logit", "stage_logit"):
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


# Eight samples in batches of four: the first two of six steps fill the cache.
REPEATED = ["data.distinct_epochs=1", "log.panel_images=0"]
KEPT = "teacher.cache_taps=('stage1','stage3')"


def cached(experiments, work_dir, cache, *options):
    """Arguments of a run whose teacher's outputs are kept in ``cache``."""
    given = [*REPEATED, f"teacher.cache={cache}", KEPT, *options]
    return [experiments["hmkd"], "--work-dir", str(work_dir), "--cfg-options", *given]


@pytest.fixture(scope="module")
def kept(experiments, tmp_path_factory):
    """As ``whole``, filling and reading a cache; gives the work dir and the cache."""
    folder = tmp_path_factory.mktemp("kept")
    train_kd.main(cached(experiments, folder / "run", folder / "cache"))
    return folder / "run", folder / "cache"


def test_outputs_kept_in_float16_teach_what_the_live_teacher_does(experiments, kept, tmp_path):
    """The first two steps read what they stored, four more replay it; and the stream repeats without a cache too."""
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *REPEATED])
    live, replayed = ([line for line in metrics(folder) if "loss" in line] for folder in (tmp_path, kept[0]))
    assert len(live) == len(replayed) == 6
    for one, other in zip(live, replayed, strict=True):
        for term in ("task", "feature", "anchor", "relation", "relation_anchor", "logit", "stage_logit"):
            assert other[term] == pytest.approx(one[term], rel=1e-3), term
    assert live[0]["logit"] != replayed[0]["logit"]  # the output is one that was kept


@pytest.fixture
def resting(monkeypatch):
    """Whoever stores has run the teacher: this is refused."""

    def refuse(self, positions, output):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(TeacherCache, "store", refuse)


def test_the_same_run_on_a_full_cache_is_the_same_and_runs_no_teacher(experiments, kept, tmp_path, resting):
    train_kd.main(cached(experiments, tmp_path, kept[1]))
    assert metrics(tmp_path) == metrics(kept[0])
    assert_same(weights(tmp_path / "last.pt"), weights(kept[0] / "last.pt"))


def test_a_run_of_another_seed_and_method_replays_the_cache(experiments, kept, tmp_path, resting):
    options = ["train.seed=1", "data.seed=0", "distill={'_delete_': True, 'type': 'kd'}", "schedule.max_iters=2"]
    train_kd.main(cached(experiments, tmp_path, kept[1], *options))
    assert losses(tmp_path)[0] != losses(kept[0])[0]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_resumed_while_it_filled_or_replayed_equals_the_uninterrupted_one(
    experiments, kept, tmp_path, monkeypatch, step
):
    """Cut after the outputs of the step were stored and before its end: when it is taken again, they are read."""
    arguments = cached(experiments, tmp_path / "run", tmp_path / "cache", "checkpoint.interval=2")

    def cut(self, *batch, forward=Trainer.forward):
        terms = forward(self, *batch)
        if self.step == step:
            raise PowerCutError
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "forward", cut)
        with pytest.raises(PowerCutError):
            train_kd.main(arguments)
    train_kd.main([*arguments, "--resume", "auto"])
    assert metrics(tmp_path / "run") == metrics(kept[0])
    assert_same(weights(tmp_path / "run" / "last.pt"), weights(kept[0] / "last.pt"))


def test_two_ranks_fill_and_read_one_cache(experiments, tmp_path, launch):
    """As one process does with accumulation; and what they filled it reads."""
    one, two, again = tmp_path / "one", tmp_path / "two", tmp_path / "again"
    options = ["schedule.max_iters=4", "train.accumulate=2"]
    train_kd.main(cached(experiments, one, tmp_path / "cache one", *options))
    arguments = cached(experiments, two, tmp_path / "cache two", options[0])
    done = launch("train_kd.py", *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the teacher's outputs on 0 of 8 samples") == 1
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    train_kd.main(cached(experiments, again, tmp_path / "cache two", *options))
    assert losses(again) == pytest.approx(losses(two), rel=1e-5)
    for name in ("logits", "stage1", "stage3"):
        files = [(tmp_path / f"cache {ranks}" / f"{name}.f16").read_bytes() for ranks in ("one", "two")]
        assert files[0] == files[1]
        assert any(files[0])


def test_a_teacher_shared_by_two_ranks_teaches_as_a_whole_one_does(experiments, tmp_path, launch):
    """Five images, pictures, and a cache that lacks one sample: what the ranks run the teacher for is not the same."""
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    options = ["schedule.max_iters=3", "train.verify_teacher=True", "train.allow_weak_teacher=True"]
    train_kd.main(cached(experiments, one, cache, *options, "train.accumulate=2"))
    with open(cache / "done", "r+b") as done:
        done.write(b"\0")  # the mark of the first sample
    arguments = [*cached(experiments, two, cache, *options), "teacher.shard=True", "log.panel_images=1"]
    run = launch("train_kd.py", *arguments, processes=2)
    assert run.returncode == 0, run.stderr
    assert (cache / "done").read_bytes() == b"\1" * 8
    assert metrics(two)[0] == metrics(one)[0]
    assert metrics(two)[0].keys() == {"step", "teacher_miou"}
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_compiled_blocks_learn_what_eager_ones_do(experiments, whole, tmp_path, monkeypatch):
    """Files and names stay the same, and an eager run goes on from them. Traced, but not made into kernels: quicker."""
    compile_as_it_is = partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", compile_as_it_is)
    compiled, eager = tmp_path / "compiled", tmp_path / "eager"
    counters.clear()
    train_kd.main([experiments["hmkd"], "--work-dir", str(compiled), "--cfg-options", "train.compile=True"])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 4  # the student has four kinds of blocks
    assert losses(compiled) == pytest.approx(losses(whole), rel=1e-4)
    assert weights(compiled / "last.pt").keys() == weights(whole / "last.pt").keys()
    eager.mkdir()
    (eager / "step_5.pt").write_bytes((compiled / "step_5.pt").read_bytes())
    train_kd.main([experiments["hmkd"], "--work-dir", str(eager), "--resume"])
    assert counters["stats"]["unique_graphs"] == graphs
    assert losses(eager) == pytest.approx(losses(compiled)[5:], rel=1e-4)


def test_a_cache_that_does_not_fit_is_refused_before_the_first_step(experiments, teacher_weights, kept, tmp_path):
    run, options = (
        [experiments["hmkd"], "--work-dir", tmp_path / "run", "--cfg-options"],
        cached(experiments, tmp_path, kept[1])[4:],
    )
    assert "teacher.cache is set but data.distinct_epochs is None" in refused([*run, f"teacher.cache={tmp_path}"])
    assert "teacher.cache_taps: unknown tap 'stage9'" in refused([*run, *options, "teacher.cache_taps=('stage9',)"])
    other = refused([*run, *options, "data.seed=3", "train.precision=bf16", "teacher.drop_path=0.1"])
    assert f"teacher.cache: {kept[1]} holds the outputs of another experiment" in other
    assert other.splitlines()[1:] == [
        "  teacher.drop_path: 0.0 -> 0.1", "  data.seed: 0 -> 3", "  precision: 'fp32' -> 'bf16'"
    ]  # fmt: skip
    state = load_file(teacher_weights)
    first = next(iter(state))
    save_file(state | {first: state[first] + 1}, tmp_path / "other.safetensors")
    message = refused([*run, *options, f"teacher.weights={tmp_path / 'other.safetensors'}"])
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == ["  teacher.weights"]
    shutil.copy(teacher_weights, tmp_path / "same.safetensors")
    train_kd.main([str(each) for each in [*run, *options, f"teacher.weights={tmp_path / 'same.safetensors'}",
                                          "schedule.max_iters=1"]])  # fmt: skip


def test_a_method_that_reads_what_is_not_kept_is_refused(experiments, tmp_path):
    arguments = cached(experiments, tmp_path / "run", tmp_path / "cache", "teacher.cache_taps=('stage1',)")
    assert "reads the teacher's tap 'stage3', and its cache keeps stage1: name it in teacher.cache_taps" in refused(
        arguments
    )


def test_a_dry_run_keeps_nothing(experiments, tmp_path):
    train_kd.main([*cached(experiments, tmp_path / "run", tmp_path / "cache"), "--dry-run"])
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_from_before_a_key_was_there_has_its_default(whole, experiments, tmp_path):
    state = torch.load(whole / "step_5.pt", weights_only=True)
    del state["config"]["teacher"]["cache_taps"], state["config"]["data"]["seed"]
    save_checkpoint(state, tmp_path / "older.pt")
    arguments = [experiments["hmkd"], "--work-dir", str(tmp_path / "run"), "--resume", str(tmp_path / "older.pt")]
    assert "data.seed: None -> 1" in refused([*arguments, "--cfg-options", "data.seed=1"])
    train_kd.main(arguments)
    assert losses(tmp_path / "run") == losses(whole)[5:]


def wait_for_steps(work_dir, count):
    path = work_dir / "metrics.jsonl"
    for _ in range(600):
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{path} does not show {count} steps")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_at_the_step_boundary(experiments, tmp_path, number):
    """A terminal (Ctrl-C) or torchrun sends it to the whole process group, the loader's workers included."""
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
    wait_for_steps(tmp_path, 3)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    step = torch.load(tmp_path / "last.pt", weights_only=True)["step"]
    assert f"stopped at step {step}" in out
    assert "Traceback" not in err
    assert metrics(tmp_path)[-1]["step"] == step


def test_scheduler_signals_reach_two_ranks_twice_and_lose_nothing(experiments, tmp_path):
    """A scheduler signals every process of a step, and torchrun forwards its own copy on top."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_kd.py"]
    options = ["schedule.max_iters=100000", "checkpoint.interval=100000", "eval.interval=100000"]
    command += [experiments["alone"], "--work-dir", str(tmp_path), "--cfg-options", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
    wait_for_steps(tmp_path, 3)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    step = torch.load(tmp_path / "last.pt", weights_only=True)["step"]
    assert f"stopped at step {step}" in out, err
    assert metrics(tmp_path)[-1]["step"] == step


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        train_kd.parse_arguments(["--help"])
    out = capsys.readouterr().out
    assert "torchrun --nproc_per_node=4 train_kd.py" in out
    assert "--resume" in out
