"""Runs that the tests of this folder share."""

import shutil

import pytest

import train_kd


@pytest.fixture(scope="session")
def whole(experiments, tmp_path_factory):
    """An uninterrupted distillation run of six steps."""
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    train_kd.main([experiments["hmkd"], "--work-dir", str(work_dir)])
    return work_dir


@pytest.fixture
def spoilt(streets, tmp_path):
    """The streets with two of the eight training labels empty; gives the folder and the two names."""
    root = tmp_path / "spoilt"
    shutil.copytree(streets, root)
    labels = [root / line.split()[1] for line in (root / "train.txt").read_text().splitlines()[2:4]]
    for label in labels:
        label.write_bytes(b"")
    return root, [label.stem for label in labels]
