"""A run of many steps holds no more at its end than soon after its start."""

import gc
import os
import threading
from pathlib import Path

import pytest

import train_kd
from engine.log import RunLog

CONFIG = """
_base_ = [{base!r}]
data = dict(crop_size=(32, 32), photometric=False, workers=1)
student = dict(_delete_=True, backbone="test_resnet", head="segformer", output_stride=32, width=8)
schedule = dict(max_iters=1000)
train = dict(batch_size=2)
eval = dict(interval=100)
checkpoint = dict(interval=100, keep=2)
log = dict(interval=10, grad_norm_interval=0, panel_images=1)
"""


def held():
    """Resident memory in MiB, open files, threads and child processes of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = [Path(f"/proc/self/task/{task}/children").read_text().split() for task in os.listdir("/proc/self/task")]
    return {
        "memory": pages * os.sysconf("SC_PAGESIZE") / 2**20,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": sum(map(len, children)),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux says what a process holds")
def test_a_thousand_steps_hold_nothing_back(experiments, tmp_path, monkeypatch):
    """Ten validations and ten checkpoints; looked at after each validation, from the third on."""
    config = tmp_path / "long.py"
    config.write_text(CONFIG.format(base=experiments["alone"]))
    before, seen = {kind: held()[kind] for kind in ("threads", "children")}, []

    def look(self, *args, validation=RunLog.validation):
        validation(self, *args)
        seen.append(held())

    monkeypatch.setattr(RunLog, "validation", look)
    train_kd.main([str(config), "--work-dir", str(tmp_path / "run")])
    assert len(seen) == 10
    for kind in ("files", "threads", "children"):
        assert {each[kind] for each in seen[2:]} == {seen[2][kind]}, (kind, seen)
    assert seen[-1]["memory"] < seen[2]["memory"] + 8, seen  # 8 MiB in 700 steps are 12 KiB a step
    assert len(list((tmp_path / "run").iterdir())) == 10  # as after six steps
    assert {kind: held()[kind] for kind in ("threads", "children")} == before
