import random
import tempfile

import pytest
import torch

from scripts import soak
from utils.checkpoint import save_checkpoint
from utils.trainer import Trainer

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
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert soak.main(["20", "--seed", "0", "--ranks", "0"]) == 0
    assert " 0 lost, 0 bytes lost" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_forgets_is_found_out(tmp_path, monkeypatch):
    """Without the optimizer's moments a run goes on, to another end."""
    restore = Trainer.restore
    # Every start dies at its flush 15, in step 3 of the first: nothing here depends on time.
    monkeypatch.setattr(soak, "ARMED", {"killed writing": lambda _: soak.die_writing(random.Random(9))})
    monkeypatch.setattr(soak, "SIGNALS", {})
    monkeypatch.setattr(soak, "DAMAGES", ())
    trial = soak.Soak(tmp_path, random.Random(1))
    trial.refer(1)

    def forgetful(self, state):
        fresh = self.optimizer.state_dict()
        restore(self, {**state, "optimizer": fresh})

    monkeypatch.setattr(Trainer, "restore", forgetful)
    with pytest.raises(soak.LostRunError, match="bytes of its log and weights differ"):
        trial.cycle(1, ranks=1)
    assert trial.faults.total() > 0
    assert trial.bytes_lost > 0
    assert (tmp_path / "cycle_1/last.pt").is_file()  # kept
