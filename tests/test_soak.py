import random
import tempfile
from types import SimpleNamespace

import pytest
import torch

from engine.checkpoint import load_checkpoint, save_checkpoint
from tests import soak

STATE = dict.fromkeys(("method", "optimizer", "scaler", "step", "best", "validated", "micro_batches", "config"), {})


def test_every_byte_that_differs_is_counted(tmp_path):
    for name, log, weights in (("one", "abcd\n", [1.0, 2.0]), ("two", "abX", [1.0, 2.5])):
        for file in ("last.pt", "best.pt"):
            save_checkpoint({**STATE, "student": {"w": torch.tensor(weights)}}, tmp_path / name / file)
        (tmp_path / name / "metrics.jsonl").write_text(log)
    # One letter and two that are missing; 2.0 and 2.5 differ in one of four bytes, in either file.
    assert soak.differing_bytes(tmp_path / "one", tmp_path / "two") == 3 + 2
    assert soak.differing_bytes(tmp_path / "one", tmp_path / "one") == 0


@pytest.mark.slow
def test_a_short_soak_loses_nothing(capsys, tmp_path, monkeypatch):
    folder = SimpleNamespace(mkdtemp=lambda prefix: tempfile.mkdtemp(prefix=prefix, dir=tmp_path))
    monkeypatch.setattr(soak, "tempfile", folder)  # its own alone: what multiprocessing makes must outlive this test
    assert soak.main(["20", "--seed", "0", "--ranks", "0"]) == 0
    assert " 0 lost, 0 bytes lost" in capsys.readouterr().out
    assert list(tmp_path.glob("soak_*")) == []


@pytest.mark.slow
def test_a_run_that_forgets_is_found_out(tmp_path, monkeypatch):
    """Without the optimizer's moments a run goes on, to another end."""
    trial = soak.Soak(tmp_path, random.Random(1))
    trial.refer(1)

    def forget() -> None:
        trial.start(soak.die_writing).join(soak.PATIENCE)
        path = trial.work_dir / "last.pt"
        state = load_checkpoint(path)
        save_checkpoint({**state, "optimizer": {**state["optimizer"], "state": {}}}, path)

    monkeypatch.setattr(trial, "hurt", forget)
    # Hurt once; with seed 9 it dies at its flush 15, in step 3: nothing here depends on time.
    monkeypatch.setattr(trial, "draw", SimpleNamespace(randint=lambda *_: 1, random=lambda: 9))
    with pytest.raises(soak.LostRunError, match="bytes of its log and weights differ"):
        trial.cycle(1, ranks=1)
    assert trial.bytes_lost > 0
    assert (tmp_path / "cycle_1/last.pt").is_file()  # kept
