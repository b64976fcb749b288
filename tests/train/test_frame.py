"""The frame of the teacher's features is measured once, before a run's first step, on the same images on all ranks."""

import pytest

import train_kd
from tests.runs import assert_same, losses, weights

PAIRS = "[('stage3','stage3'),('stage4','stage4')]"
OPTIONS = [
    f"distill={{'_delete_': True, 'type': 'hmkd', 'target': 'frame', 'feature_pairs': {PAIRS}}}",
    "schedule.max_iters=4", "eval.interval=4", "checkpoint.interval=2",
]  # fmt: skip
MEASURED = "measured the teacher on 100 training images"


def frames(path):
    return {name: value for name, value in weights(path).items() if name.endswith((".mean", ".axes"))}


@pytest.fixture(scope="module")
def one(experiments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    options = [*OPTIONS, "train.accumulate=2"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(folder), "--cfg-options", *options])
    return folder


def test_a_resumed_run_keeps_the_frame(one, experiments, tmp_path):
    (tmp_path / "step_2.pt").write_bytes((one / "step_2.pt").read_bytes())
    options = [*OPTIONS, "train.accumulate=2"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--resume", "--cfg-options", *options])
    assert losses(tmp_path) == losses(one)[2:]
    assert_same(weights(tmp_path / "last.pt"), weights(one / "last.pt"))
    assert len(frames(one / "last.pt")) == 4
    assert_same(frames(tmp_path / "last.pt"), frames(one / "step_2.pt"))
    said = [(folder / "train.log").read_text().count(MEASURED) for folder in (one, tmp_path)]
    assert said == [1, 0]


def test_the_division_among_ranks_changes_nothing(one, experiments, tmp_path, launch):
    done = launch("train_kd.py", experiments["hmkd"], "--work-dir", tmp_path, "--cfg-options", *OPTIONS, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(one), rel=1e-5)
    assert_same(frames(tmp_path / "last.pt"), frames(one / "last.pt"))
