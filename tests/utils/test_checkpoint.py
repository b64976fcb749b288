import json
import os
import pickle

import pytest
import torch
from safetensors import safe_open

from utils.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_student,
)
from utils.files import write_atomically

STATE = {
    "student": {"w": torch.arange(3.0)}, "method": {}, "optimizer": {}, "scaler": {}, "step": 7, "best": {"miou": 0.5},
    "validated": 5, "micro_batches": 1, "config": {"crop": (1, 2), "none": None},
}  # fmt: skip


def test_round_trip(tmp_path):
    save_checkpoint(STATE, tmp_path / "step_7.pt", tmp_path / "last.pt")
    for name in ("step_7.pt", "last.pt"):
        state = load_checkpoint(tmp_path / name)
        assert state["step"] == 7
        assert state["config"] == STATE["config"]
        assert torch.equal(state["student"]["w"], STATE["student"]["w"])
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "step_7.pt"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"cannot write .*last\.pt \(No space left on device\); what was there is as it was"
    ):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"not a checkpoint"}[damage])
    with pytest.raises(ValueError, match=r"last\.pt cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_file_without_training_state_says_what_it_lacks(tmp_path):
    save_checkpoint(
        {name: value for name, value in STATE.items() if name not in ("optimizer", "step")}, tmp_path / "weights.pt"
    )
    with pytest.raises(ValueError, match="lacks optimizer, step"):
        load_checkpoint(tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt does not exist"):
        load_checkpoint(tmp_path / "gone.pt")


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, target = tmp_path / "last.pt", tmp_path / "owned"
    torch.save({"student": Payload(str(target))}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(path)
    assert not target.exists()


def test_newest_is_last_or_else_the_highest_step(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        (tmp_path / f"step_{step}.pt").touch()
    (tmp_path / "step_x.pt").touch()
    assert newest_checkpoint(tmp_path).name == "step_100.pt"
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step_*.pt")) == ["step_10.pt", "step_100.pt", "step_x.pt"]
    prune_checkpoints(tmp_path, keep=3)  # more than there are: none goes
    assert len(list(tmp_path.glob("step_*.pt"))) == 3
    (tmp_path / "last.pt").touch()
    assert newest_checkpoint(tmp_path).name == "last.pt"
    prune_checkpoints(tmp_path, keep=0)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["last.pt", "step_x.pt"]


def test_student_file_holds_weights_and_metadata(tmp_path):
    save_student(tmp_path / "s.safetensors", {"w": torch.ones(2, 3).T}, {"miou": 0.5, "classes": ["a", "b"]})
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert {k: json.loads(v) for k, v in file.metadata().items()} == {"miou": 0.5, "classes": ["a", "b"]}
        assert torch.equal(file.get_tensor("w"), torch.ones(3, 2))
