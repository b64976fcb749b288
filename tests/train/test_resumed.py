"""An interrupted run that is resumed equals the uninterrupted one, bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

import train_kd
from engine.checkpoint import save_checkpoint
from engine.log import RunLog
from engine.trainer import Trainer
from tests.runs import PowerCutError, assert_same, losses, metrics, refused, weights


@pytest.mark.parametrize(("where", "step"), [("train_step", 1), ("train_step", 5), ("validation", 3)])
def test_interrupted_and_resumed_run_equals_the_uninterrupted_one(
    whole, experiments, tmp_path, monkeypatch, where, step
):
    """Cut before the first checkpoint, between two, and in a validation after its best.pt: bit-exact all the same."""
    owner = {"train_step": Trainer, "validation": RunLog}[where]
    original = getattr(owner, where)

    def cut(self, *args, **kwargs):
        if (self.step if where == "train_step" else args[0]) == step:
            raise PowerCutError
        return original(self, *args, **kwargs)

    options = ["data.workers=2", "checkpoint.interval=2"]
    arguments = [experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options]
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, cut)
        with pytest.raises(PowerCutError):
            train_kd.main(arguments)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step + 1}, "lo')  # half a line of what came next
    train_kd.main([*arguments, "--resume", "auto"])
    assert metrics(tmp_path) == metrics(whole)
    assert_same(weights(tmp_path / "last.pt"), weights(whole / "last.pt"))
    assert_same(weights(tmp_path / "best.pt"), weights(whole / "best.pt"))


def test_a_finished_checkpoint_in_a_new_folder_is_validated_again(whole, experiments, tmp_path):
    """Its best weights stayed behind, so the last ones are the best that are here."""
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--resume", str(whole / "step_6.pt")])
    assert [line["step"] for line in metrics(tmp_path)] == [6]
    assert_same(
        load_file(tmp_path / "student.safetensors"), torch.load(whole / "last.pt", weights_only=True)["student"]
    )


def test_going_on_from_a_checkpoint_of_another_folder(whole, experiments, tmp_path):
    source = str(whole / "step_5.pt")
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path / "new"), "--resume", source])
    assert losses(tmp_path / "new") == losses(whole)[5:]
    assert_same(weights(tmp_path / "new" / "last.pt"), weights(whole / "last.pt"))
    # Into the folder itself it would leave a gap in the log and a newer last.pt behind.
    assert "is at step 6 already" in refused([experiments["hmkd"], "--work-dir", whole, "--resume", source])


def test_resume_auto_starts_afresh_and_a_finished_run_stays(experiments, tmp_path):
    arguments = [experiments["alone"], "--work-dir", str(tmp_path), "--resume", "--cfg-options", "schedule.max_iters=2"]
    train_kd.main(arguments)
    before = metrics(tmp_path)
    train_kd.main(arguments)
    assert metrics(tmp_path) == before


def test_a_work_dir_that_holds_a_run_is_not_overwritten(whole, experiments):
    before = (whole / "metrics.jsonl").read_bytes()
    message = refused([experiments["hmkd"], "--work-dir", whole])
    assert "already holds a run" in message
    assert "--resume auto" in message
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_from_before_a_key_was_there_has_its_default(whole, experiments, tmp_path):
    state = torch.load(whole / "step_5.pt", weights_only=True)
    del state["config"]["teacher"]["cache_taps"], state["config"]["data"]["seed"]
    save_checkpoint(state, tmp_path / "older.pt")
    arguments = [experiments["hmkd"], "--work-dir", str(tmp_path / "run"), "--resume", str(tmp_path / "older.pt")]
    assert "data.seed: None -> 1" in refused([*arguments, "--cfg-options", "data.seed=1"])
    train_kd.main(arguments)
    assert losses(tmp_path / "run") == losses(whole)[5:]
