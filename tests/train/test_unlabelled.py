"""Runs with unlabelled images: what teaches what, exact resume, ranks, and what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

import train_kd
from tests.runs import assert_same, losses, metrics, refused, weights

HALF = ["data.labelled_fraction=0.5", "train.batch_size=2", "train.unlabelled_batch=2", "distill.pixels=inside"]
MIXED = [*HALF, "data.mixing=cutmix", "data.photometric=strong"]


def run(experiment, work_dir, *options, resume=()):
    train_kd.main([experiment, "--work-dir", str(work_dir), *resume, "--cfg-options", *options])
    return work_dir


@pytest.fixture(scope="module")
def half(experiments, tmp_path_factory):
    """A run on four labelled and four unlabelled images, mixed."""
    return run(experiments["hmkd"], tmp_path_factory.mktemp("half") / "run", *MIXED)


def test_hidden_labels_are_never_read(experiments, streets, half, tmp_path, capsys):
    """The labels of all images that are not chosen become wrong: no figure and no weight changes."""
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    labelled = set()
    for line in (root / "train.txt").read_text().splitlines():
        path = root / line.split()[1]
        Image.fromarray(np.random.default_rng(0).integers(0, 11, (48, 64)).astype(np.uint8)).save(path)
        options = [*MIXED, f"data.root={root}"]
        run(experiments["hmkd"], tmp_path / path.stem, *options, "schedule.max_iters=2", "log.panel_images=0")
        if losses(tmp_path / path.stem) != losses(half)[:2]:
            labelled.add(path.stem)
        shutil.copy(streets / line.split()[1], path)
    assert len(labelled) == 4
    assert "training images: 4 with labels, 4 without" in capsys.readouterr().out


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(experiments, half, tmp_path):
    shutil.copy(half / "step_4.pt", tmp_path)
    run(experiments["hmkd"], tmp_path, *MIXED, resume=["--resume"])
    assert losses(tmp_path) == losses(half)[4:]
    assert_same(weights(tmp_path / "last.pt"), weights(half / "last.pt"))


def test_two_ranks_learn_what_one_with_accumulation_does(experiments, tmp_path, launch):
    options = [*MIXED, "train.batch_size=4", "train.unlabelled_batch=4", "schedule.max_iters=3"]
    one = run(experiments["hmkd"], tmp_path / "one", *options, "train.accumulate=2")
    two = tmp_path / "two"
    done = launch("train_kd.py", experiments["hmkd"], "--work-dir", two, "--cfg-options", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_unlabelled_images_teach_the_student_through_the_teacher_only(experiments, tmp_path):
    """With the teacher's terms at weight 0 they change nothing but batch statistics; the task's loss counts labels."""
    kd = "distill={'_delete_': True, 'type': 'kd', 'pixels': 'inside'}"
    found = metrics(run(experiments["hmkd"], tmp_path, *HALF, kd, "schedule.max_iters=2"))
    assert all(line["kd"] > 0 for line in found if "loss" in line)


def test_a_run_without_any_label(experiments, streets, tmp_path, capsys):
    (tmp_path / "images.txt").write_text("\n".join(str(p.relative_to(streets)) for p in (streets / "train").glob("*")))
    kd = "distill={'_delete_': True, 'type': 'kd', 'pixels': 'inside'}"
    options = [kd, "data.train_list=None", "train.batch_size=0", "train.unlabelled_batch=4"]
    one = run(experiments["hmkd"], tmp_path / "one", *options, f"data.unlabelled={tmp_path / 'images.txt'}")
    assert "training images: 0 with labels, 8 without" in capsys.readouterr().out
    assert [line["task"] for line in metrics(one) if "task" in line] == [0] * 6
    # A pattern finds the same images; classmix asks the teacher for their classes.
    two = run(experiments["hmkd"], tmp_path / "two", *options, "data.unlabelled=train/*.png", "data.mixing=classmix")
    assert losses(two)[0] != losses(one)[0]


def test_a_cache_keeps_unlabelled_images_too(experiments, tmp_path):
    """Two epochs' worth of steps are replayed: the losses are those of the live teacher to float16."""
    options = [*MIXED, "data.distinct_epochs=1", "log.panel_images=0"]
    cached = [f"teacher.cache={tmp_path / 'cache'}", "teacher.cache_taps=('stage1','stage3')"]
    live = run(experiments["hmkd"], tmp_path / "live", *options)
    kept = run(experiments["hmkd"], tmp_path / "kept", *options, *cached)
    assert losses(kept) == pytest.approx(losses(live), rel=1e-3)
    assert (np.fromfile(tmp_path / "cache/done", np.uint8) == 1).all()  # four labelled, four unlabelled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.unlabelled_batch=2"], "there are no unlabelled images: set data.unlabelled"),
        (["data.unlabelled=train/*.png"], "data.unlabelled is set but train.unlabelled_batch is 0"),
        (["data.train_list=None"], "data.train_list is None and train.batch_size is 4"),
        (["data.labelled_fraction=0.5", "train.unlabelled_batch=2"], "set distill.pixels='inside'"),
        ([*HALF, "data.labelled_fraction=0.95"], "so none is unlabelled"),
        ([*HALF, "data.unlabelled=val/*.png"], "5 of the images are in the validation set too, first "),
        ([*HALF[:3], "teacher=None", "distill=None"], "teacher is None: nothing would learn"),
        ([*HALF, "data.mixing=cutmix", "train.unlabelled_batch=3"], "has 3 unlabelled images; expected an even number"),
        (["data.mixing=cutmix"], "data.mixing is set for unlabelled images"),
        (
            [*HALF[2:], "data.train_list=None", "data.unlabelled=train/*.png", "train.batch_size=0"],
            "hmkd with anchor='labels' learns from labels",
        ),
        (
            [*HALF, "data.mixing=classmix", "data.distinct_epochs=1", "teacher.cache=cache"],
            "which teacher.cache does not keep",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(experiments, tmp_path, options, message):
    assert message in refused([experiments["hmkd"], "--work-dir", tmp_path, "--cfg-options", *options])
    assert not list(tmp_path.glob("*.pt"))


def test_an_image_without_a_label_cannot_be_in_the_training_list(experiments, streets, tmp_path):
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join([*lines[:-1], lines[-1].split()[0]]))
    message = refused([experiments["alone"], "--work-dir", tmp_path / "run", "--cfg-options", f"data.root={root}"])
    assert "1 training samples have no label in their list, first " in message
    assert "name images without labels in data.unlabelled" in message


SELF_TAUGHT = ["train.ema=0.9", "teacher={'_delete_': True, 'weights': 'ema'}",
               "distill={'_delete_': True, 'type': 'self_training', 'threshold': 0.1}"]  # fmt: skip


def test_the_average_of_its_own_weights_teaches_the_student(experiments, tmp_path, launch, capsys):
    """It resumes bit for bit, two ranks learn what one does with accumulation, and it is verified by nobody."""
    options = [*HALF[:3], *SELF_TAUGHT, "train.verify_teacher=True", "log.panel_images=0"]
    whole = run(experiments["hmkd"], tmp_path / "whole", *options)
    found = [line for line in metrics(whole) if "loss" in line]
    assert all(line["self_training"] > 0 for line in found)
    assert not any("teacher_miou" in line for line in metrics(whole))
    assert "teacher: val mIoU" not in capsys.readouterr().out
    (tmp_path / "parts").mkdir()
    shutil.copy(whole / "step_4.pt", tmp_path / "parts")
    run(experiments["hmkd"], tmp_path / "parts", *options, resume=["--resume"])
    assert losses(tmp_path / "parts") == losses(whole)[4:]
    assert_same(weights(tmp_path / "parts/last.pt"), weights(whole / "last.pt"))
    two = ["--cfg-options", *options, "schedule.max_iters=3"]
    done = launch("train_kd.py", experiments["hmkd"], "--work-dir", tmp_path / "two", *two, processes=2)
    assert done.returncode == 0, done.stderr
    one = run(experiments["hmkd"], tmp_path / "one", *options, "schedule.max_iters=3", "train.accumulate=2")
    # The average's batch statistics are those of rank 0, which sees half of the images; the first step has none yet.
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(one)[0], rel=1e-5)
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-2)


def test_what_self_training_needs_is_named(experiments, tmp_path):
    message = refused([experiments["hmkd"], "--work-dir", tmp_path, "--cfg-options", *SELF_TAUGHT[1:]])
    assert "teacher.weights is 'ema', the average of the student's weights: set train.ema" in message


def test_an_unlabelled_image_that_cannot_be_read_is_replaced_as_asked(experiments, streets, tmp_path, capsys):
    """In a step of two labelled and two unlabelled images each is replaced by one of its kind."""
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    shutil.copytree(root / "train", root / "more")
    bad = sorted((root / "more").iterdir())[0]
    bad.write_bytes(b"")
    options = ["data.unlabelled=more/*.png", *HALF[1:], f"data.root={root}"]
    message = refused([experiments["hmkd"], "--work-dir", tmp_path / "stop", "--cfg-options", *options])
    assert f"{bad} cannot be decoded" in message
    run(experiments["hmkd"], tmp_path / "skip", *options, "data.on_bad_sample=skip")
    assert f"skipped (1 of 16 samples so far): {bad.stem}: " in capsys.readouterr().out
