import json
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from engine.checkpoint import (
    checkpoint_to_resume,
    load_checkpoint,
    newest_whole_checkpoint,
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
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**19))
    room = r"No space left on device: 2\.0 MiB are needed, 1\.5 MiB are free"
    with pytest.raises(OSError, match=rf"cannot write .*last\.pt \({room}\); an earlier file is unchanged"):
        write_atomically(path, bytes(2**21))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_checkpoint_is_read_by_torch_itself(tmp_path):
    save_checkpoint(STATE, tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 7


@pytest.mark.parametrize("damage", ["truncated", "one byte short", "empty", "text", "longer"])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2], "one byte short": content[:-1], "empty": b"",
            "text": b"not a checkpoint", "longer": content + b"\0",
        }[damage]
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"last\.pt \(\d+ bytes\) is damaged .* resume from another checkpoint"):
        load_checkpoint(path)


def test_any_bit_that_flips_is_noticed(tmp_path):
    """Every 37th bit of the file, which meets each of its parts; zip's own checksums would miss some."""
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 37):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged"):
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
    """Neither in a strange file, nor in one whose maker knew the digest."""
    path, target = tmp_path / "last.pt", tmp_path / "owned"
    torch.save({"student": Payload(str(target))}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="is damaged or not one of this code's"):
        load_checkpoint(path)
    save_checkpoint({"student": Payload(str(target))}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not target.exists()


def test_the_oldest_checkpoints_go(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"step_{step}.pt").touch()
    (tmp_path / "step_x.pt").touch()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step_*.pt")) == ["step_10.pt", "step_100.pt", "step_x.pt"]
    prune_checkpoints(tmp_path, keep=3)  # more than there are: none goes
    assert len(list(tmp_path.glob("step_*.pt"))) == 3
    prune_checkpoints(tmp_path, keep=0)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step_x.pt"]


def test_the_newest_whole_checkpoint_and_loudly_so(tmp_path, capsys):
    """last.pt, then step files from the highest step down, then best.pt; those that are damaged are named."""
    assert newest_whole_checkpoint(tmp_path) is None
    for step in (9, 100):
        save_checkpoint(STATE | {"step": step}, tmp_path / f"step_{step}.pt")
    save_checkpoint(STATE | {"step": 100}, tmp_path / "last.pt")
    save_checkpoint(STATE | {"step": 5}, tmp_path / "best.pt")
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"of a write that was killed")
    damaged = []
    for name, step in (("last.pt", 100), ("step_100.pt", 100), ("step_9.pt", 9), ("best.pt", 5)):
        path, state = newest_whole_checkpoint(tmp_path)
        assert (path.name, state["step"]) == (name, step)
        said = capsys.readouterr().out.splitlines()
        assert [f"WARNING: {tmp_path / name} (" in line for name, line in zip(damaged, said, strict=True)] == [
            True
        ] * len(damaged)
        (tmp_path / name).write_bytes(b"")
        damaged.append(name)
    with pytest.raises(ValueError, match=r"all 4 checkpoints in .* are damaged \(the first: .*last\.pt"):
        newest_whole_checkpoint(tmp_path)


def test_a_step_file_is_newer_than_a_last_pt_that_was_not_written_any_more(tmp_path, capsys):
    for name, step in (("step_4.pt", 4), ("last.pt", 4), ("step_5.pt", 5), ("best.pt", 6)):
        save_checkpoint({**STATE, "step": step}, tmp_path / name)
    path, state = newest_whole_checkpoint(tmp_path)
    assert (path.name, state["step"]) == ("step_5.pt", 5)
    save_checkpoint({**STATE, "step": 5}, tmp_path / "last.pt")
    assert newest_whole_checkpoint(tmp_path)[0].name == "last.pt"
    save_checkpoint({**STATE, "step": 4}, tmp_path / "last.pt")
    assert capsys.readouterr().out == ""
    (tmp_path / "step_5.pt").write_bytes(b"")
    assert newest_whole_checkpoint(tmp_path)[0].name == "last.pt"
    assert "step_5.pt (0 bytes) is damaged" in capsys.readouterr().out


def test_what_to_go_on_from(tmp_path):
    assert checkpoint_to_resume(tmp_path, None) is None
    assert checkpoint_to_resume(tmp_path, "auto") is None
    save_checkpoint(STATE, tmp_path / "last.pt")
    save_checkpoint(STATE | {"step": 3}, tmp_path / "step_3.pt")
    assert checkpoint_to_resume(tmp_path, "auto")[1]["step"] == 7
    with pytest.raises(ValueError, match=r"already holds a run \(last\.pt\): add --resume auto"):
        checkpoint_to_resume(tmp_path, None)
    with pytest.raises(ValueError, match="at step 7 already; to resume from .* \\(step 3\\) choose another --work-dir"):
        checkpoint_to_resume(tmp_path, str(tmp_path / "step_3.pt"))
    path, state = checkpoint_to_resume(tmp_path / "new", str(tmp_path / "step_3.pt"))
    assert (path, state["step"]) == (tmp_path / "step_3.pt", 3)
    with pytest.raises(FileNotFoundError, match=r"gone\.pt does not exist"):
        checkpoint_to_resume(tmp_path / "new", "gone.pt")


def test_student_file_holds_weights_and_metadata(tmp_path):
    save_student(tmp_path / "s.safetensors", {"w": torch.ones(2, 3).T}, {"miou": 0.5, "classes": ["a", "b"]})
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert {k: json.loads(v) for k, v in file.metadata().items()} == {"miou": 0.5, "classes": ["a", "b"]}
        assert torch.equal(file.get_tensor("w"), torch.ones(3, 2))
