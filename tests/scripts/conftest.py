"""Trained runs for the tests of the scripts that read them."""

import pytest

import train_kd


@pytest.fixture(scope="session")
def runs(experiments, tmp_path_factory):
    """A folder with the runs 'alone' and 'distilled', of two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in (("alone", "alone"), ("distilled", "hmkd")):
        options = ["--cfg-options", "schedule.max_iters=2", "eval.interval=1", "log.panel_images=0"]
        train_kd.main([experiments[config], "--work-dir", str(folder / name), *options])
    return folder
