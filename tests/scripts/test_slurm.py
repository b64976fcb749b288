"""The Slurm job script itself, among stand-ins for Slurm's commands."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "slurm_train.sbatch"
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" >> "$REQUEUED"; else echo localhost; fi
"""
# As Slurm: USR1 reaches the task alone, not what the task has started; TERM kills it.
SRUN = """#!/usr/bin/env bash
trap 'kill -USR1 "$task"' USR1
trap 'kill -KILL "$task"' TERM
"$@" &
task=$!
wait "$task"; code=$?
while kill -0 "$task" 2> /dev/null; do wait "$task"; code=$?; done
exit $code
"""
REAL = f'#!/usr/bin/env bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
# Trains until it is asked to stop, and ends with the code $CODE; with $AT_ONCE, it does so unasked.
STAND_IN = """#!/usr/bin/env bash
echo "torchrun $*"
trap 'exit $CODE' USR1
[ -n "${AT_ONCE:-}" ] && exit $CODE
echo ready
while true; do sleep 0.05; done
"""


@pytest.fixture
def submit(tmp_path):
    """Starts the job in ``folder`` with the given torchrun, on one node of two GPUs."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def start(torchrun, folder, *arguments, **variables):
        for name, text in {"scontrol": SCONTROL, "srun": SRUN, "torchrun": torchrun}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        slurm = {"SUBMIT_DIR": folder, "JOB_NODELIST": "localhost", "NNODES": 1, "JOB_ID": 4321, "GPUS_ON_NODE": 2}
        environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        environment |= {"SLURM_CPUS_PER_TASK": "2", "REQUEUED": str(tmp_path / "requeued"), **variables}
        environment["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)

    return start


@pytest.fixture
def requeued(tmp_path):
    return lambda: (tmp_path / "requeued").read_text().split() if (tmp_path / "requeued").is_file() else []


def test_slurm_signals_the_shell_in_time_and_may_queue_the_job_again():
    """It reads its options up to the first command."""
    head = SCRIPT.read_text().split("\nset ")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert {"#SBATCH --signal=B:USR1@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(head)


@pytest.mark.parametrize(("code", "again"), [("1", ["4321"]), ("0", [])])
def test_a_job_out_of_time_is_queued_again_unless_it_is_done(submit, requeued, tmp_path, code, again):
    """torchrun ends with 1 when its workers were stopped, with 0 if they finished all the same."""
    job = submit(STAND_IN, tmp_path, "c.py", CODE=code)
    for line in job.stdout:
        if line == "ready\n":
            break
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 0, out
    assert requeued() == again


@pytest.mark.parametrize("code", [0, 1, 7])
def test_a_job_that_ends_by_itself_is_not(submit, requeued, tmp_path, code):
    job = submit(STAND_IN, tmp_path, "c.py", CODE=str(code), AT_ONCE="1")
    out, _ = job.communicate(timeout=60)
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 train_kd.py c.py --resume auto" in out
    assert job.returncode == code
    assert requeued() == []


@pytest.mark.slow
def test_a_run_saves_when_its_time_is_up_and_goes_on_when_it_is_queued_again(submit, requeued, experiments, tmp_path):
    options = ["schedule.max_iters=40", "checkpoint.interval=1000", "eval.interval=1000", "data.workers=1"]
    arguments = [experiments["alone"], "--work-dir", tmp_path / "run", "--cfg-options", *options]
    job, log = submit(REAL, ROOT, *arguments), tmp_path / "run" / "metrics.jsonl"
    for _ in range(1200):
        if log.is_file() and len(log.read_text().splitlines()) >= 3:
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=120)
    assert (job.returncode, requeued()) == (0, ["4321"]), out
    stopped = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert 3 <= stopped < 40
    assert f"stopped at step {stopped}" in out

    job = submit(REAL, ROOT, *arguments)
    out, _ = job.communicate(timeout=120)
    assert (job.returncode, requeued()) == (0, ["4321"]), out
    assert f"last.pt at step {stopped}" in out
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 41))
