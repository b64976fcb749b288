"""A run whose teacher's outputs are kept and replayed, and a teacher that two ranks share."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

import train_kd
from engine.teacher_cache import TeacherCache
from engine.trainer import Trainer
from tests.runs import PowerCutError, assert_same, losses, metrics, refused, weights

# Eight samples in batches of four: the first two of six steps fill the cache.
REPEATED = ["data.distinct_epochs=1", "log.panel_images=0"]
KEPT = "teacher.cache_taps=('stage1','stage3')"


def cached(experiments, work_dir, cache, *options):
    """Arguments of a run whose teacher's outputs are kept in ``cache``."""
    given = [*REPEATED, f"teacher.cache={cache}", KEPT, *options]
    return [experiments["hmkd"], "--work-dir", str(work_dir), "--cfg-options", *given]


@pytest.fixture(scope="module")
def kept(experiments, tmp_path_factory):
    """As ``whole``, filling and reading a cache; gives the work dir and the cache."""
    folder = tmp_path_factory.mktemp("kept")
    train_kd.main(cached(experiments, folder / "run", folder / "cache"))
    return folder / "run", folder / "cache"


def test_outputs_kept_in_float16_teach_what_the_live_teacher_does(experiments, kept, tmp_path):
    """The first two steps read what they stored, four more replay it; and the stream repeats without a cache too."""
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *REPEATED])
    live, replayed = ([line for line in metrics(folder) if "loss" in line] for folder in (tmp_path, kept[0]))
    assert len(live) == len(replayed) == 6
    for one, other in zip(live, replayed, strict=True):
        for term in ("task", "feature", "anchor", "relation", "relation_anchor", "logit", "stage_logit"):
            assert other[term] == pytest.approx(one[term], rel=1e-3), term
    assert live[0]["logit"] != replayed[0]["logit"]  # the output is one that was kept


@pytest.fixture
def resting(monkeypatch):
    """Whoever stores has run the teacher: this is refused."""

    def refuse(self, positions, output):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(TeacherCache, "store", refuse)


def test_the_same_run_on_a_full_cache_is_the_same_and_runs_no_teacher(experiments, kept, tmp_path, resting):
    train_kd.main(cached(experiments, tmp_path, kept[1]))
    assert metrics(tmp_path) == metrics(kept[0])
    assert_same(weights(tmp_path / "last.pt"), weights(kept[0] / "last.pt"))


def test_a_run_of_another_seed_and_method_replays_the_cache(experiments, kept, tmp_path, resting):
    options = ["train.seed=1", "data.seed=0", "distill={'_delete_': True, 'type': 'kd'}", "schedule.max_iters=2"]
    train_kd.main(cached(experiments, tmp_path, kept[1], *options))
    assert losses(tmp_path)[0] != losses(kept[0])[0]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_resumed_while_it_filled_or_replayed_equals_the_uninterrupted_one(
    experiments, kept, tmp_path, monkeypatch, step
):
    """Cut after the outputs of the step were stored and before its end: when it is taken again, they are read."""
    arguments = cached(experiments, tmp_path / "run", tmp_path / "cache", "checkpoint.interval=2")

    def cut(self, *batch, forward=Trainer.forward):
        terms = forward(self, *batch)
        if self.step == step:
            raise PowerCutError
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "forward", cut)
        with pytest.raises(PowerCutError):
            train_kd.main(arguments)
    train_kd.main([*arguments, "--resume", "auto"])
    assert metrics(tmp_path / "run") == metrics(kept[0])
    assert_same(weights(tmp_path / "run" / "last.pt"), weights(kept[0] / "last.pt"))


def test_two_ranks_fill_and_read_one_cache(experiments, tmp_path, launch):
    """As one process does with accumulation; and what they filled it reads."""
    one, two, again = tmp_path / "one", tmp_path / "two", tmp_path / "again"
    options = ["schedule.max_iters=4", "train.accumulate=2"]
    train_kd.main(cached(experiments, one, tmp_path / "cache one", *options))
    arguments = cached(experiments, two, tmp_path / "cache two", options[0])
    done = launch("train_kd.py", *arguments, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the teacher's outputs on 0 of 8 samples") == 1
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    train_kd.main(cached(experiments, again, tmp_path / "cache two", *options))
    assert losses(again) == pytest.approx(losses(two), rel=1e-5)
    for name in ("logits", "stage1", "stage3"):
        files = [(tmp_path / f"cache {ranks}" / f"{name}.f16").read_bytes() for ranks in ("one", "two")]
        assert files[0] == files[1]
        assert any(files[0])


def test_a_teacher_shared_by_two_ranks_teaches_as_a_whole_one_does(experiments, tmp_path, launch):
    """Five images, pictures, and a cache that lacks one sample: what the ranks run the teacher for is not the same."""
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    options = ["schedule.max_iters=3", "train.verify_teacher=True", "train.allow_weak_teacher=True"]
    train_kd.main(cached(experiments, one, cache, *options, "train.accumulate=2"))
    with open(cache / "done", "r+b") as done:
        done.write(b"\0")  # the mark of the first sample
    arguments = [*cached(experiments, two, cache, *options), "teacher.shard=True", "log.panel_images=1"]
    run = launch("train_kd.py", *arguments, processes=2)
    assert run.returncode == 0, run.stderr
    assert (cache / "done").read_bytes() == b"\1" * 8
    assert metrics(two)[0] == metrics(one)[0]
    assert metrics(two)[0].keys() == {"step", "teacher_miou"}
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_a_cache_that_does_not_fit_is_refused_before_the_first_step(experiments, teacher_weights, kept, tmp_path):
    run, options = (
        [experiments["hmkd"], "--work-dir", tmp_path / "run", "--cfg-options"],
        cached(experiments, tmp_path, kept[1])[4:],
    )
    assert "teacher.cache is set but data.distinct_epochs is None" in refused([*run, f"teacher.cache={tmp_path}"])
    assert "teacher.cache_taps: unknown tap 'stage9'" in refused([*run, *options, "teacher.cache_taps=('stage9',)"])
    other = refused([*run, *options, "data.seed=3", "train.precision=bf16", "teacher.drop_path=0.1"])
    assert f"teacher.cache: {kept[1]} holds the outputs of another experiment" in other
    assert other.splitlines()[1:] == [
        "  teacher.drop_path: 0.0 -> 0.1", "  data.seed: 0 -> 3", "  precision: 'fp32' -> 'bf16'"
    ]  # fmt: skip
    state = load_file(teacher_weights)
    first = next(iter(state))
    save_file(state | {first: state[first] + 1}, tmp_path / "other.safetensors")
    message = refused([*run, *options, f"teacher.weights={tmp_path / 'other.safetensors'}"])
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == ["  teacher.weights"]
    shutil.copy(teacher_weights, tmp_path / "same.safetensors")
    train_kd.main([str(each) for each in [*run, *options, f"teacher.weights={tmp_path / 'same.safetensors'}",
                                          "schedule.max_iters=1"]])  # fmt: skip


def test_a_method_that_reads_what_is_not_kept_is_refused(experiments, tmp_path):
    arguments = cached(experiments, tmp_path / "run", tmp_path / "cache", "teacher.cache_taps=('stage1',)")
    assert "reads the teacher's tap 'stage3', and its cache keeps stage1: name it in teacher.cache_taps" in refused(
        arguments
    )


def test_a_dry_run_keeps_nothing(experiments, tmp_path):
    train_kd.main([*cached(experiments, tmp_path / "run", tmp_path / "cache"), "--dry-run"])
    assert not (tmp_path / "cache").exists()
