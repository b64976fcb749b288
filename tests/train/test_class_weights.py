"""train.class_weights='auto': counted once, printed, the same on every rank and in a resumed run."""

import numpy as np
import pytest
import torch

import train_kd
from configs.schema import Experiment
from datasets.census import class_weights
from engine.data import build_split
from tests.runs import losses, metrics, refused
from utils.config import load_config

AUTO = ["train.class_weights=auto", "log.panel_images=0", "log.grad_norm_interval=0", "schedule.max_iters=3"]


@pytest.fixture(scope="module")
def counted(experiments):
    """The weights, from the pixels of the training labels as the data set reads them."""
    dataset = build_split(load_config(experiments["alone"], Experiment), "", "train")
    labels = np.concatenate([dataset.load_label(i).ravel() for i in range(len(dataset))])
    return class_weights([(labels == k).sum() for k in range(dataset.num_classes)])


def test_auto_equals_the_counted_weights_given_by_hand(experiments, counted, tmp_path, capsys):
    by_hand = [*AUTO[1:], f"train.class_weights={counted}"]
    for folder, options in (("auto", AUTO), ("by_hand", by_hand), ("none", AUTO[1:])):
        train_kd.main([experiments["alone"], "--work-dir", str(tmp_path / folder), "--cfg-options", *options])
    assert metrics(tmp_path / "auto") == metrics(tmp_path / "by_hand") != metrics(tmp_path / "none")
    assert f"train.class_weights='auto': Sky {counted[0]:.2f}, Building {counted[1]:.2f}, " in capsys.readouterr().out
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("auto", "by_hand")]
    assert states[0]["class_weights"] == counted
    assert "class_weights" not in states[1]


def test_a_resumed_run_uses_the_weights_of_its_checkpoint(experiments, tmp_path, monkeypatch):
    """Labels are not read again."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    train_kd.main([experiments["alone"], "--work-dir", str(whole), "--cfg-options", *AUTO])
    monkeypatch.setattr("engine.run.check_labels", None)
    arguments = [experiments["alone"], "--work-dir", str(part), "--resume", str(whole / "step_1.pt")]
    train_kd.main([*arguments, "--cfg-options", *AUTO])
    assert losses(part) == losses(whole)[1:]


def test_auto_that_a_resumed_run_adds_is_counted(experiments, counted, tmp_path):
    arguments = [experiments["alone"], "--work-dir", str(tmp_path), "--cfg-options"]
    train_kd.main([*arguments, *AUTO[1:-1], "schedule.max_iters=2"])
    train_kd.main([*arguments, *AUTO, "--resume", "auto", "--force"])
    assert torch.load(tmp_path / "last.pt", weights_only=True)["class_weights"] == counted


def test_every_rank_has_the_same_weights(experiments, tmp_path, launch):
    """Two ranks compute what one does in two micro-batches, up to rounding; only rank 0 reads the labels."""
    one, two = tmp_path / "one", tmp_path / "two"
    train_kd.main([experiments["alone"], "--work-dir", str(one), "--cfg-options", *AUTO, "train.accumulate=2"])
    done = launch("train_kd.py", experiments["alone"], "--work-dir", two, "--cfg-options", *AUTO, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_another_word_is_refused(experiments, tmp_path):
    message = refused([experiments["alone"], "--work-dir", tmp_path, "--cfg-options", "train.class_weights=automatic"])
    assert "train.class_weights: 'automatic' is not valid; did you mean 'auto'?" in message
