import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import eval as evaluation
import train_kd
from scripts import compare
from scripts.comparison import run as comparison
from scripts.comparison.intervals import Interval
from scripts.comparison.report import gain, points, report_text, summarize

PICTURES = ("miou.png", "curves_iterations.png", "curves_seconds.png")
ENTRY_POINTS = {"train_kd.py": train_kd.main, "eval.py": evaluation.main}


@pytest.fixture(scope="module")
def files(experiments, tmp_path_factory):
    """The experiment with a test set (the validation set again, so that both must agree), and methods alone."""
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "base": f"_base_ = [{experiments['hmkd']!r}]\ndata = dict(test_list='val.txt')\n"
        "train = dict(allow_weak_teacher=True)\neval = dict(interval=1)\nlog = dict(panel_images=0)",
        "logits": "distill = dict(type='hmkd', feature=0.0, logit=2.0)",
    }
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return {name: str(folder / f"{name}.py") for name in texts}


@pytest.fixture
def started(monkeypatch):
    """Runs the jobs in this process, which is faster, and notes their names."""
    names = []

    def run_jobs(jobs, at_once, lock):
        for job in jobs:
            if not job.result.is_file():
                names.append(job.name)
                ENTRY_POINTS[Path(job.command[1]).name](job.command[2:])

    monkeypatch.setattr(comparison, "run_jobs", run_jobs)
    return names


def command(files, out, *more):
    return [
        files["base"],
        "--methods",
        files["logits"],
        "--seeds",
        "0,1",
        "--budget-iters",
        "2",
        "--out",
        str(out),
        *more,
    ]


def refused(*arguments):
    with pytest.raises(SystemExit) as stop:
        compare.main(list(map(str, arguments)))
    return str(stop.value)


def test_a_stopped_comparison_goes_on_and_ends_with_table_figures_and_pictures(
    files, started, tmp_path, monkeypatch, capsys
):
    whole = comparison.run_jobs

    def stopped_in_the_second_run(jobs, at_once, lock):
        training = [job for job in jobs if job.command[1].endswith("train_kd.py")]
        whole(training[:1] if training else jobs, at_once, lock)
        if training:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "run_jobs", stopped_in_the_second_run)
        assert refused(*command(files, tmp_path)) == "stopped; run the same command again to resume"
    assert [name.split(",")[0].split(" /")[0] for name in started] == ["teacher", "student alone"]
    first = tmp_path / "runs" / "student_alone" / "seed_0" / "student.safetensors"
    written = first.stat().st_mtime_ns
    started.clear()
    compare.main(command(files, tmp_path))
    each = [f"{name}, seed {seed}" for seed in (0, 1) for name in ("student alone", "logits")]
    assert started == [*each[1:], *(f"{name}, test set" for name in each)]
    assert first.stat().st_mtime_ns == written

    # A third time nothing is left to do, and the table says the same.
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    started.clear()
    compare.main(command(files, tmp_path))
    assert started == []
    assert (tmp_path / "table.md").read_text() == table
    for name in PICTURES:
        assert np.ptp(cv2.imread(str(tmp_path / name))) > 100

    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["methods"]) == ["student alone", "logits"]
    assert result["methods"]["student alone"]["config"]["distill"] is None
    for method in result["methods"].values():
        for run in method["runs"].values():
            assert [step for step, _ in run["curve"]] == [1, 2]
            assert run["val"]["miou"] == pytest.approx(run["test"]["miou"], abs=1e-9)  # the same images
            assert run["step_seconds"] > 0
            assert run["best"]["miou"] == max(miou for _, miou in run["curve"])
    values = [result["methods"]["logits"]["runs"][seed]["val"]["miou"] for seed in "01"]
    assert result["methods"]["logits"]["summary"]["val"]["mean"]["mean"] == pytest.approx(sum(values) / 2)

    # Another config in the same folder would compare unequal runs.
    changed = command(files, tmp_path, "--cfg-options", "optimizer.lr=0.5")
    assert "seed_0 holds a run of another config" in refused(*changed)
    assert "optimizer.lr: 0.001 -> 0.5" in refused(*changed)


def test_a_budget_in_seconds_is_measured_once_and_kept(files, started, tmp_path):
    more = [files["base"], "--methods", files["logits"], "--seeds", "3", "--out", tmp_path]
    (tmp_path / "budget.json").write_text(
        json.dumps({"seconds": 6.0, "step_seconds": {"student alone": 2.0, "logits": 2.5}})
    )
    compare.main([*map(str, more), "--budget-seconds", "6"])
    assert not any("time of a step" in name for name in started)
    methods = json.loads((tmp_path / "result.json").read_text())["methods"]
    assert {name: method["runs"]["3"]["iterations"] for name, method in methods.items()} == {
        "student alone": 3,
        "logits": 2,
    }
    assert "6 s of training" in (tmp_path / "table.md").read_text()
    assert "the budget was 6 seconds so far" in refused(*more, "--budget-seconds", 7)


def test_the_probe_measures_every_method(files, started, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "PROBE", {"max_iters": 2, "log_interval": 1})
    more = [files["base"], "--methods", files["logits"], "--seeds", "0", "--out", tmp_path]
    assert "student alone takes longer for one step" in refused(*more, "--budget-seconds", 1e-6)
    assert [name for name in started if "time of a step" in name] == [
        "student alone, time of a step",
        "logits, time of a step",
    ]
    found = json.loads((tmp_path / "budget.json").read_text())["step_seconds"]
    assert found.keys() == {"student alone", "logits"}
    assert min(found.values()) > 0


def test_unequal_terms_are_refused_and_named(files, started, tmp_path):
    other, more = tmp_path / "other.py", ["--budget-iters", 2, "--out", tmp_path / "out"]
    other.write_text(
        f"_base_ = [{files['base']!r}]\noptimizer = dict(lr=0.5)\nschedule = dict(max_iters=9)\n"
        "train = dict(batch_size=1)"
    )
    message = refused("--configs", files["base"], other, *more)
    assert f"{other} is not on equal terms with {files['base']}" in message
    assert "optimizer.lr: 0.001 -> 0.5" in message
    assert "images in a step: 1, was 4" in message
    assert "max_iters" not in message  # the budget decides
    assert "two methods are called 'base'" in refused("--configs", files["base"], files["base"], *more)
    assert not started


def test_the_student_alone_gets_the_labelled_images_only_and_as_many_in_a_step(experiments, tmp_path):
    """Methods with and without unlabelled images may be compared; the alone run keeps what concerns labels."""
    base = f"_base_ = [{experiments['hmkd']!r}]\ntrain = dict(batch_size={{}}, unlabelled_batch={{}})\n"
    half = "data = dict(labelled_fraction=0.5, mixing={}, mixing_domain={!r})\ndistill = dict(pixels='inside')\n"
    (tmp_path / "all.py").write_text((base + half).format(2, 2, "'cutmix'", "unlabelled"))
    (tmp_path / "labelled.py").write_text((base + half).format(4, 0, None, "unlabelled"))
    files = [str(tmp_path / "all.py"), str(tmp_path / "labelled.py")]
    arguments = ["--configs", *files, "--budget-iters", "2", "--out", str(tmp_path / "out")]
    alone, *others = comparison.read_methods(compare.parse_arguments(arguments))
    assert [other.config.train.unlabelled_batch for other in others] == [2, 0]
    assert (alone.config.teacher, alone.config.train.unlabelled_batch, alone.config.train.batch_size) == (None, 0, 4)
    assert (alone.config.data.mixing, alone.config.data.labelled_fraction) == (None, 0.5)


def test_errors_say_what_to_fix(files, experiments, started, tmp_path, capsys):
    more = ["--budget-iters", 2, "--out", tmp_path / "out"]
    missing = ["--cfg-options", "teacher.weights=nowhere.safetensors"]
    assert "teacher.weights: weights file nowhere.safetensors does not exist" in refused(
        "--configs", files["base"], *more, *missing
    )
    checked = ["--cfg-options", "train.verify_teacher=True"]
    assert "no better than chance" in refused("--configs", experiments["hmkd"], *more, *checked)  # random weights
    assert started == [name for name in started if name.startswith("teacher ")]
    warmup = ["--cfg-options", "schedule.warmup_iters=4"]
    assert "warmup_iters 4 is more than max_iters 2" in refused("--configs", experiments["hmkd"], *more, *warmup)
    for wrong, message in (
        (["--budget-iters", 2], "give CONFIG with --methods, or --configs, or both"),
        ([files["base"], "--budget-iters", 2], "give CONFIG with --methods, or --configs, or both"),
        (["--configs", files["base"], "--budget-iters", 0], "--budget-iters 0: expected a positive number"),
        (["--configs", files["base"], "--budget-iters", 2, "--seeds", "1,1"], "each once"),
    ):
        refused(*wrong, "--out", tmp_path / "out")
        assert message in capsys.readouterr().err


def run_of(car, pole, seconds=0.5):
    found = {"miou": (car + pole) / 2, "per_class_iou": {"Car": car, "Pole": pole, "Train": None}}
    return {
        "iterations": 8, "val": found, "test": None, "best": {"step": 4, "miou": 0.7}, "curve": [[8, found["miou"]]],
        "step_seconds": seconds, "peak_memory_mib": 100.0, "environment": {"commit": str(seconds)},
    }  # fmt: skip


def test_a_loss_that_may_be_chance_is_no_negative_transfer():
    """-7.17 ± 96 is a mean loss of 7 points of which nothing is known; one seed has no interval and stays marked."""
    alone = {seed: run_of(0.50, 0.30) for seed in range(2)}
    other = {0: run_of(0.50, 0.30), 1: run_of(0.50, 0.15)}
    found = summarize(other, alone)["val"]
    assert (found["class_gains"]["Pole"].mean, found["class_gains"]["Pole"].half) == pytest.approx(
        (-0.075, 0.953), 1e-3
    )
    assert found["negative_transfer"] == []
    assert summarize({1: other[1]}, alone)["val"]["negative_transfer"] == ["Pole"]


def test_gains_are_paired_by_seed_and_lost_classes_are_named():
    alone = {0: run_of(0.50, 0.30), 1: run_of(0.60, 0.30), 2: run_of(0.70, 0.30)}
    other = {0: run_of(0.58, 0.28, 1.0), 1: run_of(0.68, 0.28, 1.0), 2: run_of(0.78, 0.28, 1.0)}
    found = summarize(other, alone)
    # Seeds differ by 10 points in Car, but the pairs all by the same 8 - 2 points in two classes.
    assert found["val"]["gain"].mean == pytest.approx(0.03)
    assert found["val"]["gain"].half == pytest.approx(0, abs=1e-9)
    # Standard deviation of 0.43, 0.48, 0.53: 0.05; times 4.3027 / sqrt(3).
    assert found["val"]["mean"].half == pytest.approx(0.1242, abs=1e-4)
    assert found["val"]["class_gains"]["Train"] is None
    assert found["val"]["negative_transfer"] == ["Pole"]

    methods = {
        name: {"runs": runs, "teacher": teacher, "summary": summarize(runs, alone)}
        for name, runs, teacher in (("student alone", alone, None), ("other", other, {"miou": 0.8}))
    }
    text = report_text(
        {
            "methods": methods, "split": {"val": "val.txt", "test": None}, "seeds": [0, 1, 2], "jobs": 1,
            "budget": {"iterations": 8, "seconds": None}, "protocol": "recipe", "crop_size": (32, 48),
            "eval": {"mode": "whole"}, "precision": "fp32", "device": "cpu",
        }
    )  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == ["other", "80.00", "8", "48.00 ± 12.42", "+3.00 ± 0.00", "70.00 ± 0.00", "1000.0", "100"]
    assert rows[3] == ["student alone", "", "8", "45.00 ± 12.42", "", "70.00 ± 0.00", "500.0", "100"]
    assert rows[6:] == [["Car", "+8.00 ± 0.00"], ["Pole", "-2.00 ± 0.00 **!**"], ["Train", "-"]]
    assert "they differ in commit" in text


def test_a_gain_within_its_interval_is_marked():
    assert gain(Interval(0.01, 0.02)) == "+1.00 ± 2.00 n.s."
    assert gain(Interval(-0.03, 0.02)) == "-3.00 ± 2.00"
    assert gain(Interval(0.01, None)) == "+1.00 ± -"
    assert points(Interval(0.549, 0.012)) == "54.90 ± 1.20"


@pytest.mark.slow
def test_as_a_user_runs_it(files, launch, tmp_path):
    done = launch("scripts/compare.py", "--configs", files["base"], "--seeds", 0, "--budget-iters", 2,
                  "--out", tmp_path, "--jobs", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one seed gives no interval" in (tmp_path / "table.md").read_text()
    assert all((tmp_path / name).is_file() for name in PICTURES)
