import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.log import RunLog
from engine.metrics import SegMetrics
from tests.conftest import ROOT
from utils import console
from utils.console import environment, log_to_file, peak_memory_mib, say


def lines(work_dir):
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def training(log, step):
    log.training(step, {"loss": step / 2, "task": step / 2}, {"task": 1.0}, {}, lr=0.1, scaling={})


def test_resuming_drops_what_was_logged_after_the_checkpoint(tmp_path, capsys):
    log = RunLog(tmp_path, step=0, validated=0, total=10, images=4)
    for step in (1, 2, 3):
        training(log, step)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')  # killed in the middle of a line
    log = RunLog(tmp_path, step=2, validated=0, total=10, images=4)
    training(log, 3)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert "step 3/10 loss 1.5000 task 1.5000" in capsys.readouterr().out


def test_validation_of_the_checkpoints_own_step_stays_only_if_it_was_over(tmp_path):
    for validated, kept in ((0, ["loss"]), (2, ["loss", "miou"])):
        (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": 2, "miou": 0.5}\n')
        RunLog(tmp_path, step=2, validated=validated, total=10, images=4).close()
        assert [key for line in lines(tmp_path) for key in line if key != "step"] == kept


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: 'nonsense\\n' is not a JSON object"):
        RunLog(tmp_path, step=2, validated=0, total=10, images=4)


def test_starting_afresh_empties_the_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "teacher_miou": 0.5}\n')
    RunLog(tmp_path, step=0, validated=0, total=10, images=4).close()
    assert lines(tmp_path) == []


def test_validation_line_has_null_for_an_absent_class(tmp_path):
    log = RunLog(tmp_path, step=0, validated=0, total=10, images=4)
    metrics = SegMetrics([0.5, float("nan")], [0.6, float("nan")], 0.5, 0.6, 0.7)
    log.validation(5, metrics, ["road", "sky"], {"step": 5, "miou": 0.5}, teacher_miou=0.8)
    log.close()
    assert lines(tmp_path) == [
        {"step": 5, "miou": 0.5, "macc": 0.6, "pixel_accuracy": 0.7, "per_class_iou": {"road": 0.5, "sky": None}}
    ]


def test_pauses_do_not_count_in_the_rate_and_the_time_left_includes_them(tmp_path, monkeypatch, capsys):
    """Twenty steps of 0.8 s with a validation of 98 s every five of them; four steps are an epoch."""
    now = [0.0]
    monkeypatch.setattr("engine.log.time.perf_counter", lambda: now[0])
    log = RunLog(tmp_path, step=0, validated=0, total=20, images=4, interval=5, epoch=4)
    rates = []
    log.trackers.trackers["tensorboard"].board.add_scalar = lambda *entry: rates.append(entry)
    now[0] = 4.0
    training(log, 5)
    with log.paused():
        now[0] = 102.0
    log.validated = 5
    now[0] = 106.0
    training(log, 10)
    log.close()
    assert [value for name, value, _ in rates if name == "train/images_per_s"] == [pytest.approx(5 * 4 / 4)] * 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" 5.0 images/s epoch 1.25/5.00, at least 0:00:12 left")  # 15 steps
    assert second.endswith(" 5.0 images/s epoch 2.50/5.00, 0:05:02 left")  # 10 steps and 3 validations


def test_the_bar_shows_the_loss_the_best_miou_and_the_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    now = [0.0]
    monkeypatch.setattr("engine.log.time.perf_counter", lambda: now[0])
    log = RunLog(tmp_path, step=0, validated=0, total=4, images=4, interval=2, epoch=8)
    now[0] = 10.0
    log.progress(1, 0.5)
    assert log.bar.postfix == "epoch 0.12/0.50, loss 0.5000, at least 0:00:30 left"
    with log.paused():
        now[0] = 15.0
    log.validation(2, SegMetrics([0.5], [0.5], 0.5, 0.5, 0.5), ["road"], {"step": 1, "miou": 0.625}, None)
    log.progress(2, 0.25)
    assert log.bar.postfix == "epoch 0.25/0.50, loss 0.2500, mIoU 62.50%, 0:00:15 left"
    assert log.bar.n == 2
    log.close()


def test_inactive_log_writes_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "run", step=0, validated=0, total=10, images=4, active=False)
    training(log, 1)
    log.picture(1, "panel", np.zeros((2, 2, 3), np.uint8))
    log.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_what_is_said_is_kept_and_large_files_are_put_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "RECORD_BYTES", 300)

    def run():
        for number in range(20):
            say(f"line {number}: " + "x" * 40)
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"), log_to_file(tmp_path):
        run()
    say("after the run")
    names = ["train.log", "train.log.1", "train.log.2", "train.log.3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.stat().st_size <= 300 for path in tmp_path.iterdir())
    kept = "".join((tmp_path / name).read_text() for name in reversed(names)).splitlines()
    assert kept[-1].endswith(" ended by ValueError: the reason")
    numbers = [int(line.partition("line ")[2].partition(":")[0]) for line in kept[:-1]]
    assert numbers == list(range(numbers[0], 20))


def test_a_run_that_never_began_leaves_no_log(tmp_path):
    with pytest.raises(ValueError, match="the reason"), log_to_file(tmp_path):
        raise ValueError("the reason")
    assert list(tmp_path.iterdir()) == []


def test_environment_names_versions_and_commit():
    facts = environment()
    assert {"python", "torch", "timm", "numpy", "device", "commit"} <= facts.keys()
    assert facts["torch"] != "not installed"
    assert peak_memory_mib() > 50


KILLED = """
import os, signal, sys
from engine.log import RunLog
from engine.metrics import SegMetrics
log = RunLog(sys.argv[1], step=0, validated=0, total=10, images=4)
log.training(2, {"loss": 1.5}, {}, {}, lr=0.1, scaling={"loss_scale": 1024.0, "skipped_steps": 3})
log.validation(2, SegMetrics([0.5], [0.6], 0.5, 0.6, 0.7), ["road"], {"step": 2, "miou": 0.5}, None)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_logged_outlives_a_killed_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "step 2/10 loss 1.5000 lr 1.00e-01 loss_scale 1024 skipped_steps 3 " in done.stdout
    assert [line.get("loss", line.get("miou")) for line in lines(tmp_path)] == [1.5, 0.5]
    assert (lines(tmp_path)[0]["loss_scale"], lines(tmp_path)[0]["skipped_steps"]) == (1024.0, 3)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for name, value in {"train/loss": 1.5, "train/skipped_steps": 3.0, "val/miou": 0.5, "val_iou/road": 0.5}.items():
        assert [event.value for event in board.Scalars(name)] == [value]
