"""Samples that cannot be read, and worker processes that die or hang."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import get_worker_info

import train_kd
from datasets.base import SegDataset
from tests.runs import assert_same, losses, metrics, refused, weights
from utils.distributed import lost_process_message

SHORT = ["schedule.max_iters=4", "log.panel_images=0", "log.grad_norm_interval=0"]


def test_a_bad_file_in_a_worker_process_ends_the_run(experiments, streets, tmp_path, launch):
    """Workers outlive signals for a while, but not the run: it must exit, not wait for them."""
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    image = root / (root / "train.txt").read_text().split()[0]  # labels are read before the first step
    image.write_bytes(image.read_bytes()[:100])
    options = ["--cfg-options", f"data.root={root}", "data.workers=2"]
    done = launch("train_kd.py", experiments["alone"], "--work-dir", tmp_path / "run", *options)
    assert done.returncode == 1
    assert f"error: {image} cannot be decoded" in done.stderr
    assert "Traceback" not in done.stderr


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(3600)


@pytest.mark.parametrize(
    ("fault", "seconds", "said"),
    [
        # Its connection may close before PyTorch sees the signal.
        (die, 60, r"(DataLoader worker \(pid \d+\) is killed by signal: Killed|Connection reset by peer)"),
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


@pytest.mark.parametrize("workers", [0, 2])
def test_shared_memory_that_is_read_only_is_named_with_data_workers(experiments, tmp_path, monkeypatch, workers):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    options = [*SHORT, f"data.workers={workers}", "schedule.max_iters=1"]
    run = [experiments["alone"], "--work-dir", str(tmp_path), "--cfg-options", *options]
    if workers == 0:
        train_kd.main(run)
    else:
        message = refused(run)
        assert "data.workers is 2" in message
        assert "Read-only file system; on Linux it is /dev/shm): set data.workers=0" in message


def test_shared_memory_that_is_too_small_is_named_with_data_workers():
    """The text is PyTorch's, of a worker whose batch does not fit."""
    trace = "Traceback (most recent call last):\n  ..."
    full = "RuntimeError: unable to write to file </torch_1_2_3>: No space left on device (28)"
    error = RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{trace}\n{full}\n")
    message = lost_process_message(error, timeout=60)
    assert "With data.workers=0 no such process is needed" in message
    assert message.endswith(f"({full})")


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
