"""Runs that are followed by several trackers, without a network."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_kd
from configs.schema import Experiment
from engine import trackers
from engine.log import RunLog
from engine.trackers import Trackers, check_trackers, flat
from tests.runs import PowerCutError, assert_same, losses, metrics, refused, weights
from utils.config import load_config


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def cut_and_resumed(experiments, work_dir, names, monkeypatch):
    """A run that dies in its validation of step 3 and is resumed, followed by these trackers."""
    arguments = [experiments["hmkd"], "--work-dir", str(work_dir), "--cfg-options", f"log.trackers={names!r}"]
    original = RunLog.validation

    def cut(self, step, *rest):
        original(self, step, *rest)
        if step == 3:
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "validation", cut)
        with pytest.raises(PowerCutError):
            train_kd.main(arguments)
    train_kd.main([*arguments, "--resume", "auto"])


def test_mlflow_follows_a_run_and_its_resumption_as_one(experiments, whole, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs pip install '.[trackers]'")
    cut_and_resumed(experiments, tmp_path, ("mlflow",), monkeypatch)
    assert metrics(tmp_path) == metrics(whole)
    assert_same(weights(tmp_path / "last.pt"), weights(whole / "last.pt"))
    assert not (tmp_path / "tensorboard").exists()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("hmkd").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert run.data.params["student.backbone"] == "mit_b0"
    assert run.data.params["teacher.output_stride"] == "16"
    logged = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert [logged[step] for step in range(1, 7)] == pytest.approx(losses(whole))
    validations = client.get_metric_history(run.info.run_id, "val/miou")
    assert {point.step for point in validations} == {3, 6}
    artifacts = tmp_path / "mlflow" / run.info.experiment_id / run.info.run_id / "artifacts"
    assert json.loads((artifacts / "config.json").read_text())["log"]["trackers"] == ["mlflow"]
    assert (artifacts / "val" / "panel" / "6.png").is_file()


def test_wandb_follows_a_run_and_its_resumption_as_one(experiments, whole, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs pip install '.[trackers]'")
    cut_and_resumed(experiments, tmp_path, ("wandb",), monkeypatch)
    assert metrics(tmp_path) == metrics(whole)
    assert_same(weights(tmp_path / "last.pt"), weights(whole / "last.pt"))
    known = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # W&B joins them when they are uploaded, because they have one id
    assert {folder.name.rpartition("-")[2] for folder in folders} == {known}
    written = [(folder / f"run-{known}.wandb").read_bytes() for folder in folders]
    assert all(content.count(b"train/loss") for content in written)
    assert all(b"mit_b0" in content for content in written)
    assert [bool(list(folder.rglob("batch_*.png"))) for folder in folders] == [True, True]


def test_a_tracker_that_fails_stops_nothing_and_its_losses_are_counted(
    experiments, whole, tmp_path, monkeypatch, capsys
):
    class Failing:
        def __init__(self, *_):
            pass

        def scalars(self, step, values):
            if step > 1:
                raise ConnectionError("the server is away")

        def picture(self, *_):
            pass

        def close(self, finished):
            raise AssertionError("it was left out")

    def refusing(*_):
        raise RuntimeError("no key")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", refusing)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Failing)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    options = ["--cfg-options", "log.trackers=('wandb','mlflow','tensorboard')"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), *options])
    assert metrics(tmp_path) == metrics(whole)
    said = capsys.readouterr().out
    assert said.count("log.trackers: wandb failed, and the run continues: RuntimeError: no key") == 1
    assert said.count("log.trackers: mlflow failed, and the run continues: ConnectionError: the server is away") == 1
    # Entries after step 1: 5 steps and 2 validations; after the third the two pictures are lost too.
    assert "mlflow failed to take 9 entries of this run" in said
    # 6 steps, 2 validations, 3 pictures, and its start.
    assert "wandb failed to take 12 entries of this run" in said
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses(whole))
    assert not (tmp_path / "trackers.json").exists()


def test_a_run_that_starts_afresh_is_another_tracked_run(tmp_path, monkeypatch):
    seen = []

    class Tracker:
        def __init__(self, work_dir, step, config, known):
            seen.append(known)
            self.id = known or f"run{len(seen)}"

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Tracker)
    for step in (0, 4, 0, 2):
        Trackers(("wandb",), tmp_path, step, {})
    assert seen == [None, "run1", None, "run3"]


def test_a_missing_package_is_named_before_anything_is_built(experiments, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "mlflow" else name)
    options = ["--cfg-options", "log.trackers=('tensorboard','mlflow')", "data.root=nowhere"]
    message = refused([experiments["alone"], "--work-dir", tmp_path / "run", *options])
    assert "log.trackers: the package mlflow is not installed: pip install '.[trackers]', or remove 'mlflow'" in message
    check_trackers(("tensorboard", "wandb"), "x.py")


def test_tensorboard_shows_config_hyperparameters_and_the_teachers_line(experiments, tmp_path):
    options = ["train.verify_teacher=True", "train.allow_weak_teacher=True"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (teacher,) = [line["teacher_miou"] for line in metrics(tmp_path) if "teacher_miou" in line]
    assert [(event.step, event.value) for event in board.Scalars("val/teacher_miou")] == [
        (3, pytest.approx(teacher)), (6, pytest.approx(teacher)),
    ]  # fmt: skip
    (text,) = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("config/text_summary")]
    shown = "\n".join(line.removeprefix("    ") for line in text.splitlines())
    config = load_config(tmp_path / "config.py", Experiment)
    assert json.loads(shown) == config.model_dump(mode="json")
    plugin = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optimizer.lr" in plugin
    assert b"mit_b0" in plugin
    batch = board.Images("train/batch")
    assert [(event.step, event.width > 1000) for event in batch] == [(0, True)]


def test_a_nested_config_becomes_flat():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": (1, 2), "f": True}) == {
        "a.b": 1, "a.c.d": "None", "e": "(1, 2)", "f": True,
    }  # fmt: skip


def test_mlflow_takes_any_name_and_nan(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs pip install '.[trackers]'")
    followed = Trackers(("mlflow",), tmp_path, 0, {"<a>": {"b": 1}})
    followed.send("scalars", 1, {"val_iou/<a> & b": 0.5, "val_iou/rare": float("nan")})
    followed.send("picture", 1, "val/panel", np.zeros((4, 4, 3), np.uint8))
    followed.close(finished=False)
    assert not +followed.lost
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    run = client.get_run(followed.trackers["mlflow"].id)
    assert run.info.status == "KILLED"
    assert run.data.metrics["val_iou/_a_ _ b"] == 0.5
    assert run.data.params == {"_a_.b": "1"}
    assert np.isnan(run.data.metrics["val_iou/rare"])
