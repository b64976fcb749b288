"""The shell launchers, with a stand-in for Python that says how it was called."""

import os
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.fixture
def run(tmp_path):
    """A copy of the launchers beside a fake ``.venv/bin/python`` that counts GPUS and prints its arguments."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("_launch.sh", "train.sh", "eval.sh"):
        (scripts / name).write_text((ROOT / "scripts" / name).read_text())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/usr/bin/env bash\nif [ "$1" = -c ]; then echo "${GPUS:-1}"; else echo "threads $OMP_NUM_THREADS: $*"; fi\n'
    )
    python.chmod(0o755)

    def call(script, *arguments, gpus=1):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"GPUS": str(gpus)}
        command = ["bash", str(scripts / script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        return done.returncode, done.stdout.replace(str(tmp_path), "ROOT").strip()

    return call


def test_one_process_runs_plain_python(run):
    code, out = run("train.sh", "configs/demo/hmkd.py", "1", "--resume", "auto")
    assert code == 0
    assert out.endswith(": ROOT/train_kd.py configs/demo/hmkd.py --resume auto")


def test_several_processes_run_under_torchrun(run):
    _, out = run("eval.sh", "c.py", "3", "best.pt", "--flip")
    assert "-m torch.distributed.run --standalone --nproc_per_node=3 ROOT/eval.py c.py best.pt --flip" in out


@pytest.mark.parametrize(
    ("gpus", "expected"), [(1, "ROOT/train_kd.py c.py"), (2, "--nproc_per_node=2 ROOT/train_kd.py c.py")]
)
def test_without_a_count_every_gpu_is_used(run, gpus, expected):
    assert run("train.sh", "c.py", gpus=gpus)[1].endswith(expected)


def test_help_prints_the_header(run):
    code, out = run("train.sh")
    assert code == 2
    assert "bash scripts/train.sh configs/hmkd/camvid_b4_r18.py 4 --resume auto" in out
    assert "set -" not in out


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "_environment.sh", "slurm_train.sbatch"])
def test_shell_syntax(script):
    assert subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], capture_output=True).stderr == b""
