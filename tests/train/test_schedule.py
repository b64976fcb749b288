"""schedule.epochs and schedule.type in a run."""

import pytest

import train_kd
from configs.schema import Experiment
from tests.runs import assert_same, losses, metrics, refused, weights
from utils.config import load_config

# Three passes over 8 images in batches of 5 are 24 / 5 steps: 5.
EPOCHS = ["schedule.epochs=3", "schedule.max_iters=None", "train.batch_size=5", "log.panel_images=0"]


def test_epochs_equal_the_steps_that_they_make(experiments, tmp_path, capsys):
    steps = ["schedule.max_iters=5", *EPOCHS[2:]]
    for folder, options in (("epochs", EPOCHS), ("steps", steps)):
        train_kd.main([experiments["alone"], "--work-dir", str(tmp_path / folder), "--cfg-options", *options])
    said = capsys.readouterr().out
    assert said.count("schedule.epochs=3: 5 steps, 8 images an epoch") == 1
    assert metrics(tmp_path / "epochs") == metrics(tmp_path / "steps")
    assert (tmp_path / "epochs" / "config.py").read_text() == (tmp_path / "steps" / "config.py").read_text()
    schedule = load_config(tmp_path / "epochs" / "config.py", Experiment).schedule
    assert (schedule.max_iters, schedule.epochs) == (5, None)
    # The checkpoint resumes with either config.
    for folder, options in (("epochs", EPOCHS), ("steps", steps)):
        new, source = tmp_path / f"resumed_{folder}", tmp_path / folder / "step_3.pt"
        train_kd.main(
            [experiments["alone"], "--work-dir", str(new), "--resume", str(source), "--cfg-options", *options]
        )
        assert losses(new) == losses(tmp_path / "steps")[3:]
        assert_same(weights(new / "last.pt"), weights(tmp_path / "steps" / "last.pt"))


def test_a_warm_up_longer_than_the_epochs_is_refused(experiments, tmp_path):
    options = [*EPOCHS, "schedule.warmup_iters=6"]
    message = refused([experiments["alone"], "--work-dir", tmp_path, "--cfg-options", *options])
    assert "schedule.epochs=3 makes 5 steps: schedule: warmup_iters 6 is more than max_iters 5" in message


def test_the_learning_rate_of_a_cosine_run_is_half_a_wave(experiments, tmp_path):
    options = ["schedule.type=cosine", "schedule.max_iters=4", "schedule.warmup_iters=0", "log.panel_images=0"]
    train_kd.main([experiments["alone"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    rates = [line["lr"] for line in metrics(tmp_path) if "lr" in line]
    assert rates == pytest.approx([1e-3, 1e-3 * (2 + 2**0.5) / 4, 0.5e-3, 1e-3 * (2 - 2**0.5) / 4])
