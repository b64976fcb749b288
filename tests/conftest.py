"""Small data and small experiments that several test files share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from scripts.street.scene import write_synthetic

ROOT = Path(__file__).resolve().parents[1]

# The same few cases in every run; HYPOTHESIS_PROFILE=thorough draws many new ones.
quiet = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture)
settings.register_profile("few", max_examples=80, derandomize=True, deadline=None, suppress_health_check=quiet)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

# Small in every way: a run of a few steps takes seconds. Drop path and dropout are on: they too must resume exactly.
EXPERIMENT = """
data = dict(type="camvid", root={root!r}, crop_size=(32, 48), scale_range=(0.8, 1.2), photometric=True, workers=0)
student = dict(backbone="mit_b0", head="segformer", width=16, drop_path=0.2)
optimizer = dict(type="adamw", lr=1e-3, head_lr_mult=2.0, weight_decay=0.01, decay_norm_bias=False)
schedule = dict(max_iters=6, warmup_iters=1)
train = dict(batch_size=4, precision="fp32", verify_teacher=False)
eval = dict(interval=3)
checkpoint = dict(interval=1, keep=3)
log = dict(interval=1, grad_norm_interval=4, panel_images=1)
"""
DISTILL = """
teacher = dict(backbone="test_resnet", head="deeplabv3", output_stride=16, width=8, weights={weights!r})
distill = dict(type="hmkd", feature=1.0, logit=1.0, relation=1.0, stage_logit=0.5)
"""


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tensors are small: threads would only contend for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def streets(tmp_path_factory):
    """A synthetic data set in CamVid's layout: 8 training and 5 validation images of 48 x 64."""
    root = tmp_path_factory.mktemp("data") / "streets"
    write_synthetic(root, train=8, val=5, size=(48, 64))
    return root


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory):
    """A whole segmentation network with random weights, as ``student.safetensors`` would hold it."""
    from engine.checkpoint import save_student
    from models import build_model

    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(0)
    save_student(path, build_model("test_resnet", "deeplabv3", 11, output_stride=16, width=8).state_dict(), {})
    return path


@pytest.fixture(scope="session")
def experiments(tmp_path_factory, streets, teacher_weights):
    """Config files by name: 'alone' trains the student by itself, 'hmkd' distils into it."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "alone.py").write_text(EXPERIMENT.format(root=str(streets)))
    (folder / "hmkd.py").write_text("_base_ = ['alone.py']\n" + DISTILL.format(weights=str(teacher_weights)))
    return {name: str(folder / f"{name}.py") for name in ("alone", "hmkd")}


@pytest.fixture
def launch():
    """Runs an entry point as a user does, in one process or under torchrun; gives the finished process."""

    def run(script, *arguments, processes=1, timeout=240):
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return subprocess.run(
            [*command, str(ROOT / script), *map(str, arguments)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    return run
