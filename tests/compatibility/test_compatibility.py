"""Files of an earlier revision still load: rebuilt from their keys and shapes (see make.py), with random values."""

import hashlib
import io
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as evaluation
import train_kd
from configs.schema import Experiment
from engine.resume import find_checkpoint
from engine.run import Run
from models import load_student
from tests.compatibility.make import HERE, RUNS, rebuild
from tests.runs import assert_same, losses, refused
from utils.config import load_config
from utils.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


def write_checkpoint(path, state):
    """As that revision did: a zip archive whose comment is the digest of all before the comment's length."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    archive = buffer.getvalue()
    comment = b"sha256:" + hashlib.sha256(archive).hexdigest().encode()
    path.write_bytes(archive[:-2] + len(comment).to_bytes(2, "little") + comment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, streets):
    """The work dirs of that revision's runs, and their data."""
    folder = tmp_path_factory.mktemp("compatibility")
    (folder / "data").symlink_to(streets)
    for run in RUNS:
        files = json.loads((HERE / f"{run}.json").read_text())
        (folder / run).mkdir()
        (folder / run / "config.py").write_text(files["config.py"])
        student = files["student.safetensors"]
        save_file(rebuild(student["tensors"]), folder / run / "student.safetensors", student["metadata"])
        write_checkpoint(folder / run / "step_2.pt", rebuild(files["step_2.pt"]))
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    """The configs name data and the teacher's weights from there."""
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("file", ["student.safetensors", "step_2.pt"])
def test_a_student_is_rebuilt_from_its_file_alone(folder, run, file):
    model, about = load_student(folder / run / file)
    assert_same(model.state_dict(), load_file(folder / run / "student.safetensors"))
    assert about["class_names"][:2] == ["Sky", "Building"]
    assert about["network"]["backbone"] == {"resnet18_alone": "resnet18", "mit_b0_hmkd": "mit_b0"}.get(
        run, "test_resnet"
    )


@pytest.mark.parametrize("run", ["resnet18_alone", "mit_b0_hmkd"])
def test_a_checkpoint_and_the_student_file_evaluate_alike(run, tmp_path):
    figures = []
    for file in ("student.safetensors", "step_2.pt"):
        evaluation.main([f"{run}/config.py", f"{run}/{file}", "--json", str(tmp_path / "figures.json")])
        result = json.loads((tmp_path / "figures.json").read_text())
        figures.append((result["miou"], result["per_class_iou"]))
    assert figures[0] == figures[1]


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_restores_all_that_it_holds(run, tmp_path):
    """Weights, the method's modules and memories, the optimizer's moments and every counter, under the same names."""
    path = f"{run}/step_2.pt"
    saved = torch.load(path, weights_only=True)
    config = load_config(f"{run}/config.py", Experiment)
    restored = Run(config, f"{run}/config.py", tmp_path, ALONE, find_checkpoint(tmp_path, path, ALONE)).state()
    for part in ("student", "method"):
        assert_same(restored[part], saved[part])
    groups, saved_groups = (each["optimizer"]["param_groups"] for each in (restored, saved))
    for group, saved_group in zip(groups, saved_groups, strict=True):
        assert {**group, "lr": 0.0} == {**saved_group, "lr": 0.0}  # each step sets the rate anew
    assert restored["optimizer"]["state"].keys() == saved["optimizer"]["state"].keys()
    for index, moments in saved["optimizer"]["state"].items():
        assert_same(restored["optimizer"]["state"][index], moments)
    assert (restored["step"], restored["scaler"], restored["skipped_steps"]) == (2, saved["scaler"], 0)
    assert len(saved["method"]) > 0 or run == "resnet18_alone"


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_resumed_with_its_own_config(run, tmp_path):
    train_kd.main([f"{run}/config.py", "--work-dir", str(tmp_path), "--resume", f"{run}/step_2.pt"])
    assert len(losses(tmp_path)) == 1
    assert math.isfinite(losses(tmp_path)[0])


def test_resume_refuses_only_what_has_changed(tmp_path):
    run = ["mit_b0_hmkd/config.py", "--work-dir", tmp_path, "--resume", "mit_b0_hmkd/step_2.pt"]
    message = refused([*run, "--cfg-options", "optimizer.lr=0.002", "log.interval=2"])
    assert message.splitlines()[1:] == ["  optimizer.lr: 0.001 -> 0.002"]
