"""What befalls a run of several processes: one dies, hangs or computes what is not finite."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def command(fault, experiment, work_dir, *options, launcher=()):
    """Two processes under torchrun; ``fault`` as tests/faulty.py has it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *launcher]
    options = ["schedule.max_iters=4", "log.panel_images=0", *options]
    arguments = [*fault.split(), experiment, "--work-dir", work_dir, "--resume", "auto", "--cfg-options", *options]
    return [*torchrun, "-m", "tests.faulty", *map(str, arguments)]


def start(*args, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*args, **kwargs), cwd=ROOT, env=environment, **pipes)


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def last(work_dir):
    return torch.load(work_dir / "last.pt", weights_only=True)


def test_a_rank_that_dies_is_restarted_and_the_run_ends_as_if_nothing_had_happened(experiments, tmp_path):
    """torchrun starts all ranks anew; they resume from the last checkpoint: step 2 of 4."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["checkpoint.interval=2", "eval.interval=2"]
    assert finish(start("none 0 0", experiments["alone"], whole, *options))[0] == 0
    code, out, err = finish(start("kill 3 1", experiments["alone"], killed, *options, launcher=["--max-restarts=1"]))
    assert code == 0, err
    assert "last.pt at step 2" in out
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    one, other = last(whole), last(killed)
    assert one["step"] == other["step"] == 4
    assert [name for name in one["student"] if not torch.equal(one["student"][name], other["student"][name])] == []
    # What rank 0 said when it lost rank 1.
    assert (
        "error: rank 0: another rank died, or did not answer within 1800 s (train.timeout); no answer from rank 1."
        in err
    )
    assert "Traceback" not in err


def test_a_rank_that_hangs_stops_the_others_within_the_timeout(experiments, tmp_path):
    process = start("stop 2 1", experiments["alone"], tmp_path, "train.timeout=8")
    try:
        stopped = wait_for_stopped_child(process.pid)
        began, said = time.monotonic(), [""]
        while "train.timeout" not in said[-1]:
            said.append(process.stderr.readline())
        assert time.monotonic() - began < 8 + 5 + 10  # the timeout, the roll call, and a slow machine
    finally:
        os.kill(stopped, signal.SIGKILL)  # torchrun would do so 30 s later
    assert finish(process)[0] == 1
    assert said[-1].startswith(
        "error: rank 0: another rank died, or did not answer within 8 s (train.timeout); no answer "
    )
    assert "no answer from rank 1. See the last output of that rank" in said[-1]
    assert "Traceback" not in "".join(said)
    assert last(tmp_path)["step"] == 2


def wait_for_stopped_child(parent):
    for _ in range(1200):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return int(child)
        time.sleep(0.1)
    raise TimeoutError("no rank stopped")


def test_a_gradient_that_is_not_finite_on_one_rank_stops_both_and_is_kept_there(experiments, tmp_path):
    code, _, err = finish(start("nan 2 1", experiments["alone"], tmp_path))
    assert code == 1
    said = [line for line in err.splitlines() if line.startswith("error: step 2: not finite: the gradient of task; ")]
    assert len(said) == 1  # of two ranks with the same error
    assert "(rank 1); no optimizer step was taken" in said[0]
    assert err.count("step_2_rank_1.pt holds the batch") == 1
    assert [path.name for path in (tmp_path / "crash").iterdir()] == ["step_2_rank_1.pt"]
    dump = torch.load(tmp_path / "crash" / "step_2_rank_1.pt", weights_only=True)
    assert dump["micro_batches"][0]["position"].tolist() == [10, 11]  # of the third step's 8..11
    assert ", ".join(dump["micro_batches"][0]["name"]) + " (rank 1)" in said[0]
    assert last(tmp_path)["step"] == 2


def test_an_error_of_all_ranks_is_printed_once(experiments, tmp_path):
    """In the config, before the ranks have met; and in the start of the run, after it."""
    for option, message in (("train.batch_sizes=3", "unknown key"), ("teacher.weights=nowhere.pth", "does not exist")):
        code, _, err = finish(start("none 0 0", experiments["hmkd"], tmp_path, option))
        assert code == 1
        assert [message in line for line in err.splitlines() if line.startswith("error: ")] == [True]
