"""The same seed gives the same bits: shown on a CPU, and where there is one on a GPU; else by the operations used."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import train_kd
from losses import build_method
from losses.functional import warp
from losses.skd import pool_nodes
from models import build_model
from models.heads.layers import RegionPool
from tests.conftest import ROOT
from tests.losses.networks import MIT_B0, RESNET18, random_labels, random_output
from utils.config import load_section
from utils.distributed import make_deterministic

METHODS = sorted((ROOT / "configs/_base_/methods").glob("*.py"))
# By PyTorch's documentation of use_deterministic_algorithms: no deterministic kernel on a GPU. F.interpolate's is
# replaced by PyTorch itself, so its own gradient is not among them.
ERRORS = {
    "grid_sampler_2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
    "reflection_pad2d_backward", "fractional_max_pool2d_backward", "max_unpool2d", "put", "put_", "histc", "median",
    "_ctc_loss", "_embedding_bag",
}  # fmt: skip


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


class Recorder(TorchDispatchMode):
    """Names of the operations that run, forward and backward, and that have no deterministic kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.all, self.bad = set(), set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        self.all.add(name)
        reduced_loss = name in ("nll_loss_forward", "nll_loss2d_forward") and args[3] != 0
        weighted_count = name == "bincount" and len(args) > 1 and args[1] is not None
        if name in ERRORS or reduced_loss or weighted_count:
            self.bad.add(name)
        return operation(*args, **(kwargs or {}))


def plain(compute):
    torch.use_deterministic_algorithms(False)
    result = compute()
    torch.use_deterministic_algorithms(True)
    return result


@pytest.mark.parametrize("file", METHODS, ids=[file.stem for file in METHODS])
def test_every_method_keeps_to_operations_that_a_gpu_can_repeat(file, deterministic):
    torch.manual_seed(0)
    section = load_section(file, "distill")
    if section["type"] == "cirkd":
        section |= {"pixel_queue": 100, "region_queue": 20, "pixel_keys": 190, "region_keys": 38, "batch_cells": 256}
    method = build_method(student=MIT_B0, teacher=RESNET18, **section)
    student, teacher = random_output(MIT_B0, 2, 64, 64, True), random_output(RESNET18, 2, 64, 64)
    with Recorder() as recorder:
        terms = method(student, teacher, random_labels(2, 64, 64, num_classes=19))
        sum(terms.values()).backward()
    assert any(x.grad is not None for x in (student.logits, *student.taps.values()))
    assert recorder.bad == set()


@pytest.mark.parametrize("head", ["deeplabv3", "segformer", "pspnet"])
def test_every_head_keeps_to_operations_that_a_gpu_can_repeat(head, deterministic):
    model = build_model("test_resnet", head, 3, output_stride=32, width=8, aux=True)
    with Recorder() as recorder:
        output = model(torch.randint(0, 256, (2, 3, 192, 192), dtype=torch.uint8))
        (output.logits.sum() + output.aux.sum()).backward()
    assert "convolution_backward" in recorder.all
    assert recorder.bad == set()


def test_the_recorder_sees_what_a_gpu_cannot_repeat():
    x, grid = torch.rand(1, 1, 4, 4, requires_grad=True), torch.zeros(1, 2, 2, 2)
    with Recorder() as recorder:
        sampled = F.grid_sample(x, grid, align_corners=False)
        (sampled.sum() + F.adaptive_avg_pool2d(x, 3).sum() + F.adaptive_max_pool2d(x, 3).sum()).backward()
        F.cross_entropy(torch.rand(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))
    assert recorder.bad == {
        "grid_sampler_2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward",
        "nll_loss2d_forward",
    }  # fmt: skip


@pytest.mark.parametrize("reach", [0.0, 0.7, 5.0])
def test_the_deterministic_warp_is_the_plain_one(reach, deterministic):
    """Values and both gradients, within the map, on its border (zero offsets, too) and far beyond."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    offsets = (reach * torch.randn(2, 2, 4, 8, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(2, 3, 4, 8, dtype=torch.float64)

    def compute():
        moved = warp(x, offsets)
        return moved.detach(), *torch.autograd.grad((moved * weight).sum(), (x, offsets))

    for one, other in zip(compute(), plain(compute), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert other.abs().sum() > 0


@pytest.mark.parametrize("bins", [2, 3, 6])
def test_the_deterministic_pooling_is_the_plain_one(bins, deterministic):
    maps = torch.randn(2, 3, 7, 10, requires_grad=True)

    def compute():
        pooled = RegionPool(bins)(maps)
        return pooled.detach(), torch.autograd.grad(pooled.square().sum(), maps)[0]

    torch.testing.assert_close(compute(), plain(compute))
    with torch.autocast("cpu", torch.bfloat16):
        assert RegionPool(bins)(maps.bfloat16()).dtype == torch.bfloat16


def test_nodes_are_pooled_with_the_gradient_of_pooling():
    """Ties included: the gradient goes to the first of equal cells."""
    x = torch.randint(0, 3, (2, 3, 7, 5)).double().requires_grad_()
    valid = torch.ones(2, 7, 5, dtype=torch.bool)
    pooled, weight = pool_nodes(x, valid, 3), torch.randn(2, 9, 3, dtype=torch.float64)
    expected = F.adaptive_max_pool2d(x, 3).flatten(2).transpose(1, 2)
    assert torch.equal(pooled, expected)
    gradients = [torch.autograd.grad((each * weight).sum(), x)[0] for each in (pooled, expected)]
    torch.testing.assert_close(*gradients)


def test_a_deterministic_run_on_a_cpu_sets_all_that_a_gpu_needs(experiments, tmp_path, deterministic, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(False)
    options = ["train.deterministic=True", "schedule.max_iters=1", "log.panel_images=0"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark


def run_twice(experiment, folder, *options):
    """The same run in two processes, each with three more that load data; what both leave."""
    found = []
    for name in ("one", "two"):
        arguments = [experiment, "--work-dir", folder / name, "--cfg-options", "data.workers=3", *options]
        command = [sys.executable, "train_kd.py", *map(str, arguments)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
        state = torch.load(folder / name / "last.pt", weights_only=True)
        found.append(((folder / name / "metrics.jsonl").read_text(), state["student"] | state["method"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_train_the_same_bit_for_bit(experiments, tmp_path, device, monkeypatch):
    options = ["schedule.max_iters=3", "log.panel_images=0", "train.deterministic=True"]
    if device == "cpu":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (metrics, weights), (other_metrics, other_weights) = run_twice(experiments["hmkd"], tmp_path, *options)
    assert metrics.count('"loss"') == 3
    assert metrics == other_metrics
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []
