"""Nothing that happens to a run's process, disk or folder loses work: each test injects the fault."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

import engine.run
import train_kd
from engine import trackers
from tests.runs import metrics, refused
from utils import files

KILLS = int(os.environ.get("KILLS", 12))
# Forked from a process that has computed nothing: after a compiled backward pass PyTorch refuses one in a fork.
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["train_kd"])
# A distillation in which all is on that must resume: dropout, drop path, the method's own modules, validations.
TINY = """
_base_ = [{base!r}]
student = dict(_delete_=True, backbone="test_resnet", head="deeplabv3", output_stride=16, width=8, drop_path=0.2)
distill = dict(_delete_=True, type="hmkd")
schedule = dict(max_iters=8)
eval = dict(interval=4)
checkpoint = dict(interval=1, keep=2)
log = dict(interval=1, grad_norm_interval=0, panel_images=0)
"""


def assert_same_run(one, two):
    """Log and final weights, bit for bit."""
    assert metrics(one) == metrics(two)
    for name in ("last.pt", "best.pt"):
        states = [torch.load(folder / name, weights_only=True) for folder in (one, two)]
        for part in ("student", "method"):
            first, second = (state[part] for state in states)
            assert first.keys() == second.keys()
            assert [key for key in first if not torch.equal(first[key], second[key])] == []
    tensors, others = (load_file(folder / "student.safetensors") for folder in (one, two))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.fixture(scope="module")
def tiny(experiments, tmp_path_factory):
    """A config file of a run that takes a second."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.py"
    path.write_text(TINY.format(base=experiments["hmkd"]))
    return str(path)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The run without a fault."""
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    train_kd.main([tiny, "--work-dir", str(work_dir)])
    return work_dir


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def train_silently(prepare, arguments):
    """``train_kd.main`` after ``prepare()``; its output goes nowhere."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - pytest's own are files
    torch.set_num_threads(1)
    prepare()
    train_kd.main(arguments)


def nothing():
    pass


def start(arguments, prepare=nothing):
    """A process that trains, and that need not import anything."""
    process = forked.Process(target=train_silently, args=(prepare, [str(argument) for argument in arguments]))
    process.start()
    return process


def run_to_its_end(arguments):
    process = start(arguments)
    process.join(120)
    assert process.exitcode == 0


def killed_within(process, seconds):
    """Whether SIGKILL met the process, rather than its end."""
    process.join(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


@pytest.mark.slow
def test_a_run_killed_at_random_moments_in_a_row_equals_the_uninterrupted_one(tiny, whole, run):
    """SIGKILL some time into each start, KILLS times; then the run may end."""
    arguments = [tiny, "--work-dir", run, "--resume", "auto"]
    imported = forked.Process(target=nothing)
    imported.start()
    imported.join()
    began = time.monotonic()
    run_to_its_end([tiny, "--work-dir", run.with_name("timed")])
    duration = time.monotonic() - began
    draw, kills, finished, steps = random.Random(0), 0, 0, set()
    while kills < KILLS:
        if killed_within(start(arguments), draw.uniform(0.1, 0.9) * duration):
            kills += 1
            steps |= {path.name for path in run.glob("step_*.pt")}
        else:
            # It came to its end: what is there is compared, and the faults go on in a new folder.
            assert_same_run(run, whole)
            shutil.rmtree(run)
            finished += 1
    run_to_its_end(arguments)
    assert_same_run(run, whole)
    assert finished or len(steps) > 1  # the kills met a run that went on, not only its imports
    assert not [path for path in run.iterdir() if path.name.endswith(".tmp") or path.name == ".lock"]


def die_while_writing(name, moment):
    """Patches what writes files: SIGKILL in the middle of the content of ``name``, or around its renaming."""
    replace, plain_open = os.replace, open

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class HalfFile:
        """Dies in the middle of its content."""

        def __init__(self, path):
            self.file = plain_open(path, "wb")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            die()

    def dying_replace(source, target):
        if os.path.basename(target) != name:
            return replace(source, target)
        if moment == "just renamed":
            replace(source, target)
        return die()

    if moment == "half written":

        def dying_open(path, *args, **kwargs):
            return HalfFile(path) if f".{name}." in str(path) else plain_open(path, *args, **kwargs)

        files.open = dying_open
    else:
        files.os.replace = dying_replace


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("step_4.pt", "half written"), ("step_4.pt", "not yet renamed"), ("step_4.pt", "just renamed"),
        ("last.pt", "half written"), ("best.pt", "half written"), ("best.pt", "just renamed"),
        ("metrics.jsonl", "not yet renamed"), ("student.safetensors", "half written"),
    ],
)  # fmt: skip
def test_a_run_killed_while_it_writes_equals_the_uninterrupted_one(tiny, whole, run, name, moment):
    """In the middle of a checkpoint, also a validation's, of the log's rewriting, of the student's file."""
    arguments = [tiny, "--work-dir", run, "--resume", "auto"]
    process = start(arguments, partial(die_while_writing, name, moment))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    run_to_its_end(arguments)
    assert_same_run(run, whole)
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "empty", "half renamed"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(tiny, whole, run, capsys, damage):
    train_kd.main([tiny, "--work-dir", str(run)])
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 3] ^= 1
    damaged = {"truncated": content[: len(content) // 2], "bit flipped": content, "empty": b""}
    for name in ("last.pt", "step_8.pt"):
        if damage == "half renamed":
            (run / name).rename(run / f".{name}.4711.tmp")
        else:
            (run / name).write_bytes(damaged[damage])
    capsys.readouterr()
    train_kd.main([tiny, "--work-dir", str(run), "--resume", "auto"])
    said = capsys.readouterr().out
    assert f"resumed from {run / 'step_7.pt'} at step 7" in said
    for name in ("last.pt", "step_8.pt"):
        assert (f"WARNING: {run / name} (" in said) == (damage != "half renamed")
    assert_same_run(run, whole)
    assert not list(run.glob(".*"))


def test_with_no_whole_checkpoint_left_nothing_starts_afresh_by_itself(tiny, whole, run):
    shutil.copytree(whole, run)
    log = (run / "metrics.jsonl").read_bytes()
    for path in run.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert "all 4 checkpoints in" in refused([tiny, "--work-dir", run, "--resume", "auto"])
    assert (run / "metrics.jsonl").read_bytes() == log


def test_a_damaged_best_checkpoint_is_named_and_validated_anew(tiny, whole, run, capsys):
    shutil.copytree(whole, run)
    (run / "best.pt").write_bytes(b"")
    train_kd.main([tiny, "--work-dir", str(run), "--resume", "auto"])
    assert "best.pt (0 bytes) is damaged" in capsys.readouterr().out
    assert torch.load(run / "best.pt", weights_only=True)["step"] == 8


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size in MiB; gives the function that makes it."""
    mounted = []

    def make(mebibytes):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def checkpoint_mebibytes(whole):
    return (whole / "last.pt").stat().st_size / 2**20


def test_a_full_disk_stops_the_run_and_what_was_saved_goes_on_elsewhere(tiny, whole, run, small_disk):
    """Room for two checkpoints and a half: the disk is full at the third file, and the first two stay whole."""
    disk = small_disk(int(2.5 * checkpoint_mebibytes(whole)) + 1)
    message = refused([tiny, "--work-dir", disk / "run"])
    assert re.search(
        r"cannot write .*/disk/run/\S+\.pt \(No space left on device: \d+\.\d MiB are needed, \d+\.\d MiB are free\); "
        "an earlier file is unchanged", message
    )  # fmt: skip
    assert message.split("error: ")[1] in (disk / "run" / "train.log").read_text()
    shutil.copytree(disk / "run", run)
    train_kd.main([tiny, "--work-dir", str(run), "--resume", "auto"])
    assert_same_run(run, whole)


def test_a_full_disk_stops_nothing_if_so_asked(tiny, whole, run, small_disk, capsys):
    """Every checkpoint and log entry that finds no room is named; with room, a run resumes from what was saved."""
    disk = small_disk(int(2.5 * checkpoint_mebibytes(whole)) + 1)
    train_kd_arguments = [tiny, "--work-dir", str(disk / "run"), "--cfg-options", "checkpoint.on_save_error=continue"]
    assert "step_8.pt (No space left" in refused(train_kd_arguments)  # nothing follows the last one
    said = capsys.readouterr().out
    for step in range(2, 8):
        assert f"step_{step}.pt (No space left" in said
    assert said.count("the run continues without it (checkpoint.on_save_error)") >= 6
    assert [line["step"] for line in metrics(disk / "run") if "loss" in line] == list(range(1, 9))
    shutil.copytree(disk / "run", run)
    train_kd.main([tiny, "--work-dir", str(run), "--resume", "auto"])
    assert_same_run(run, whole)


def test_a_disk_that_has_become_read_only_keeps_what_was_there(small_disk):
    disk = small_disk(1)
    files.write_atomically(disk / "last.pt", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(
        OSError, match=r"cannot write .*last\.pt \(Read-only file system\); an earlier file is unchanged"
    ):
        files.write_atomically(disk / "last.pt", b"new")
    assert (disk / "last.pt").read_bytes() == b"old"


def limit_files():
    """No file grows beyond 6000 bytes; checkpoints and TensorBoard are not written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    engine.run.save_checkpoint = lambda state, *paths: None
    trackers.SummaryWriter = MagicMock()
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


def test_a_log_that_cannot_be_written_stops_the_run_or_not_as_asked(tiny, whole, run):
    """A limit on the size of files meets metrics.jsonl in the middle of a line; checkpoints go elsewhere."""

    def limited(*options):
        process = start(
            [tiny, "--work-dir", run, "--cfg-options", "eval.interval=100", "schedule.max_iters=40", *options],
            limit_files,
        )
        process.join(60)
        lines = (run / "metrics.jsonl").read_bytes()
        assert lines.endswith(b"}\n")
        return process.exitcode, len(lines)

    code, size = limited()
    assert code == 1
    assert 5500 < size <= 6000
    assert "cannot write" in (run / "train.log").read_text()
    shutil.rmtree(run)
    assert limited("checkpoint.on_save_error=continue")[1] == size


def test_two_runs_in_one_folder(tiny, run):
    """The second is refused and changes nothing; the first is not disturbed."""
    process = start([tiny, "--work-dir", run, "--cfg-options", "schedule.max_iters=100000", "eval.interval=100000"])
    try:
        for _ in range(600):
            if (run / "last.pt").is_file():
                break
            time.sleep(0.1)
        message = refused([tiny, "--work-dir", run, "--resume", "auto"])
        assert f"{run}: another run works in this folder (process {process.pid} on " in message
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def test_resuming_with_another_config_shows_what_changed_and_is_refused_unless_forced(tiny, whole, run, capsys):
    shutil.copytree(whole, run)
    changes = ["optimizer.lr=0.5", "schedule.max_iters=10", "log.interval=2", "data.workers=1", "eval.interval=7"]
    arguments = [tiny, "--work-dir", str(run), "--resume", "--cfg-options", *changes]
    message = refused(arguments)
    assert message.splitlines()[1:] == ["  optimizer.lr: 0.001 -> 0.5", "  schedule.max_iters: 8 -> 10"]
    assert "--force" in message
    train_kd.main([*arguments, "--force"])
    assert "at step 8 with a changed config:\n  optimizer.lr: 0.001 -> 0.5" in capsys.readouterr().out
    assert metrics(run)[: len(metrics(whole))] == metrics(whole)
    assert [line["step"] for line in metrics(run)][len(metrics(whole)) :] == [10, 10]


def test_what_is_forced_is_what_the_resumed_run_uses(tiny, whole, run):
    """Half the rate from step 4 on: the log shows it, beside the same schedule."""
    run.mkdir()
    shutil.copy(whole / "step_7.pt", run)
    options = ["optimizer.lr=5e-4", "optimizer.decay_norm_bias=True", "optimizer.betas=(0.5,0.9)"]
    train_kd.main([tiny, "--work-dir", str(run), "--resume", "auto", "--force", "--cfg-options", *options])
    rate, before = (next(line["lr"] for line in metrics(each) if line["step"] == 8) for each in (run, whole))
    assert rate == before / 2
    groups = torch.load(run / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {(group["weight_decay"], group["betas"]) for group in groups} == {(0.01, (0.5, 0.9))}


def test_fewer_iterations_than_are_done_are_refused(tiny, whole, run):
    shutil.copytree(whole, run)
    options = ["--force", "--cfg-options", "schedule.max_iters=4"]
    message = refused([tiny, "--work-dir", run, "--resume", *options])
    assert "last.pt is at step 8, and schedule.max_iters is 4: set schedule.max_iters=8 or more" in message


def test_a_finished_run_is_trained_longer_as_asked(tiny, whole, run, capsys):
    """On the longer schedule, or on a new one: (1 - 8 / 12)^0.9 or 1 of the rate 0.001; the warm-up is of one step.

    With the restart, the run equals one that had it from the start.
    """
    shutil.copytree(whole, run)
    arguments = ["--resume", "--force", "--cfg-options", "schedule.max_iters=12"]
    train_kd.main([tiny, "--work-dir", str(run), *arguments])
    assert "the learning rate of step 8 is 3.72e-04 instead of 0.00e+00" in capsys.readouterr().out
    rates = {line["step"]: line["lr"] for line in metrics(run) if "lr" in line}
    assert rates[9] == pytest.approx(1e-3 * (1 - 8 / 12) ** 0.9)
    assert rates[8] == pytest.approx(1e-3 * (1 - 7 / 8) ** 0.9)
    again, at_once = run.with_name("again"), run.with_name("at_once")
    shutil.copytree(whole, again)
    train_kd.main([tiny, "--work-dir", str(again), *arguments, "schedule.restart_at=8"])
    train_kd.main([tiny, "--work-dir", str(at_once), "--cfg-options", "schedule.max_iters=12", "schedule.restart_at=8"])
    assert_same_run(again, at_once)


def test_another_type_of_optimizer_cannot_be_forced(tiny, whole, run):
    shutil.copytree(whole, run)
    options = ["--force", "--cfg-options", "optimizer.type=sgd"]
    message = refused([tiny, "--work-dir", run, "--resume", *options])
    assert "was made with optimizer.type='adamw'; the config has 'sgd'" in message


def test_what_does_not_fit_cannot_be_forced(tiny, whole, run):
    shutil.copytree(whole, run)
    options = ["--force", "--cfg-options", "student.width=16"]
    assert "does not fit this config's networks, method and optimizer" in refused(
        [tiny, "--work-dir", run, "--resume", *options]
    )


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(tiny, run, launch):
    """2 -> 1 -> 4 processes of the same global batch: the same samples in the same order, so much the same losses.

    In two micro-batches, as in the reference, they are the same to rounding; four of one sample have other batch
    statistics, which the run says.
    """
    reference = run.with_name("reference")
    train_kd.main([tiny, "--work-dir", str(reference), "--cfg-options", "train.accumulate=2"])
    ours, before = [], None
    for processes, accumulate, first, last in ((2, 1, 1, 3), (1, 2, 4, 6), (4, 1, 7, 8)):
        folder = run / str(processes)
        if before is not None:
            folder.mkdir()
            shutil.copy(before, folder)
        arguments = [tiny, "--work-dir", str(folder), "--resume", "auto", "--cfg-options"]
        arguments += [f"train.accumulate={accumulate}", "checkpoint.keep=8"]
        if processes == 1:
            train_kd.main(arguments)
        else:
            done = launch("train_kd.py", *arguments, processes=processes)
            assert done.returncode == 0, done.stderr
        ours += [line["loss"] for line in metrics(folder) if "loss" in line and first <= line["step"] <= last]
        before = folder / f"step_{last}.pt"
    assert "each step has the same samples in 4 micro-batches instead of 2:" in done.stdout
    theirs = [line["loss"] for line in metrics(reference) if "loss" in line]
    assert ours[:6] == pytest.approx(theirs[:6], rel=1e-4)
    assert ours[6:] == pytest.approx(theirs[6:], rel=0.2)
    other = refused([tiny, "--work-dir", folder, "--resume", "auto", "--cfg-options", "train.batch_size=8"])
    assert other.endswith("train.batch_size: 4 -> 8")
