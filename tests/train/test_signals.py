"""A run that a signal stops saves at the next step."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT
from tests.runs import metrics


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
