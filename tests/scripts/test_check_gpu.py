"""The command that checks a GPU: its small form on a CPU, and what a check that fails, hangs or dies does to others."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from scripts import check_gpu
from scripts.benchmarks import checks
from scripts.benchmarks.checks import CHECKS, Setting
from tests.conftest import ROOT

CPU = torch.device("cpu")


def run(tmp_path, *arguments):
    """The exit code and the rows."""
    with pytest.raises(SystemExit) as stop:
        check_gpu.main([*arguments, "--out", str(tmp_path / "rows.json")])
    return stop.value.code, json.loads((tmp_path / "rows.json").read_text())


def rows_of(check, tmp_path, monkeypatch, seconds=30.0):
    monkeypatch.setitem(CHECKS, "made up", (check, seconds))
    setting = Setting(CPU, "", tmp_path, time.monotonic() + seconds)
    return list(check_gpu.run_check(multiprocessing.get_context("fork"), "made up", setting))


@pytest.mark.slow
def test_the_small_form_passes_on_a_cpu(tmp_path, capsys):
    code, rows = run(tmp_path, "--device", "cpu", "--minutes", "30")  # more than it needs on a busy machine
    assert [f"{row['check']}, {row['what']}: {row['result']}" for row in rows if not row["ok"]] == []
    assert code == 0
    assert list(dict.fromkeys(row["check"] for row in rows)) == list(CHECKS)
    assert capsys.readouterr().out.splitlines()[-1] == "cpu works"
    found = {row["what"]: row for row in rows}
    whole = found["train_kd.py, 8 steps"]["losses"]
    assert len(whole) == 8
    assert found["the same, killed after 3 steps and resumed"]["losses"] == whole
    assert found["the same, one rank of gloo"]["losses"] == whole


@pytest.mark.gpu
@pytest.mark.slow
def test_the_check_passes_on_this_gpu(tmp_path):
    code, rows = run(tmp_path)
    assert [f"{row['check']}, {row['what']}: {row['result']}" for row in rows if row["ok"] is False] == []
    assert code == 0


@pytest.mark.gpu
def test_no_line_of_a_step_waits_for_the_gpu(tmp_path):
    device = torch.device("cuda")
    step = Setting(device, "", tmp_path, 0.0).step(checks.SMALL[1])[-1]
    step()
    assert checks.host_waits(step, device) == []


def test_without_time_no_check_runs_and_the_verdict_tells(tmp_path, capsys):
    code, rows = run(tmp_path, "--device", "cpu", "--minutes", "0", "--checks", "facts", "onnx")
    assert (code, [(row["check"], row["ok"]) for row in rows]) == (0, [("facts", None), ("onnx", None)])
    assert capsys.readouterr().out.splitlines()[-1] == "cpu works; not run: facts, onnx"


def test_a_failure_stops_no_other_case(tmp_path, monkeypatch):
    def fails(setting):
        yield "first", lambda: [][1]
        yield "second", lambda: sys.exit("error: no such file\nmore")
        yield "third", lambda: {"ok": False, "result": "other bits"}
        yield "fourth", lambda: {"result": "fine", "seconds": 3}

    rows = rows_of(fails, tmp_path, monkeypatch)
    assert [(row["what"], row["ok"], row["result"]) for row in rows] == [
        ("first", False, "IndexError: list index out of range"),
        ("second", False, "SystemExit: error: no such file"),
        ("third", False, "other bits"),
        ("fourth", True, "fine"),
    ]
    assert "[][1]" in rows[0]["trace"]
    assert rows[3]["seconds"] == 3


def test_a_check_that_hangs_is_stopped_and_keeps_what_it_found(tmp_path, monkeypatch):
    def hangs(setting):
        yield "first", lambda: {"result": "fine"}
        yield "second", lambda: time.sleep(300)

    start = time.monotonic()
    found, stopped = rows_of(hangs, tmp_path, monkeypatch, seconds=3.0)
    assert time.monotonic() - start < 60
    assert (found["what"], found["ok"]) == ("first", True)
    assert (stopped["what"], stopped["ok"], stopped["result"]) == ("the rest", False, "stopped after 3 s")


def test_a_check_whose_process_dies_says_so(tmp_path, monkeypatch):
    def dies(setting):
        yield "first", lambda: {"result": "fine"}
        yield "second", lambda: os._exit(9)

    found, died = rows_of(dies, tmp_path, monkeypatch)
    assert (found["ok"], died["ok"], died["result"]) == (True, False, "the process died: exit code 9")


def test_a_failed_check_is_in_the_verdict_and_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "run_check", lambda context, check, setting: [
        {"check": check, "what": "all", "ok": check != "pairs", "took": 1.0, "result": "made up"}
    ])  # fmt: skip
    code, rows = run(tmp_path, "--device", "cpu", "--checks", "facts", "pairs", "runs")
    assert (code, len(rows)) == (1, 3)
    assert capsys.readouterr().out.splitlines()[-1] == "cpu FAILS in pairs"


def test_importing_the_checks_asks_for_no_device():
    """The process from which the checks' processes are forked must not start CUDA: they could not use it then."""
    code = """
import torch
def asked(*arguments): raise SystemExit("asked for a device")
for module, names in ((torch.cuda, ("is_available", "device_count", "_lazy_init", "init")),
                      (torch._C, ("_cuda_getDeviceCount", "_accelerator_getAccelerator")),
                      (torch.accelerator, ("current_accelerator", "is_available", "device_count"))):
    for name in names:
        assert hasattr(module, name) or module is torch._C
        setattr(module, name, asked)
import scripts.benchmarks.checks
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_on_a_cpu_two_calls_beside_each_other_run_in_order():
    order = []
    found = checks.beside(lambda: order.append("first") or 1, lambda: order.append("second") or 2, CPU)
    assert (found, order) == ((1, 2), ["first", "second"])


def test_a_graph_without_a_gpu_is_the_call_itself():
    call = torch.ones(2).sum
    assert checks.graphed(call, CPU) is call


def test_losses_of_two_devices_that_differ_are_a_failure(tmp_path, monkeypatch):
    """The device's losses are one part in a hundred larger."""
    monkeypatch.setattr(checks.step, "build", lambda config, world: FakeTrainer(1.0 if world.device is CPU else 1.01))
    monkeypatch.setattr(checks.step, "load_pair", lambda *options: None)
    monkeypatch.setattr(checks.torch, "device", lambda name: CPU)
    (_, compare), _ = checks.agreement(Setting(object(), "", tmp_path, 0.0)._replace(device=FakeDevice()))
    row = compare()
    assert (row["ok"], row["result"]) == (False, "differ by 1.0e-02 at most, relative")


class FakeDevice:
    type = "fake"


class FakeTrainer:
    def __init__(self, loss):
        self.loss, self.distiller = loss, torch.nn.Identity()

    def train_step(self, batches):
        return {"loss": self.loss}, {}
