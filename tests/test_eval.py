"""eval.py as a user runs it: figures, JSON, pictures, one process or two."""

import hashlib
import json

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
from datasets import build_dataset
from models import build_model
from utils.checkpoint import save_student


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    torch.manual_seed(1)
    save_student(path, build_model("mit_b0", "segformer", 11, width=16).state_dict(), {})
    return path


def run(*arguments):
    evaluation.main([str(argument) for argument in arguments])


def refused(*arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return str(stop.value)


def test_table_json_and_pictures_agree(experiments, student, streets, tmp_path, capsys):
    run(
        experiments["alone"],
        student,
        "--json",
        tmp_path / "r.json",
        "--save-pred",
        tmp_path / "pred",
        "--save-vis",
        tmp_path / "vis",
    )
    out, result = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())
    assert "Bicyclist" in out
    assert f"{100 * result['miou']:.2f}" in out
    assert result["sha256"] == hashlib.sha256(student.read_bytes()).hexdigest()
    assert result["split"] == "val"
    assert result["images"] == 5
    assert result["config"]["student"]["backbone"] == "mit_b0"
    assert result["environment"]["torch"]

    # The figures again, counted naively from the label files that were written.
    dataset = build_dataset("camvid", streets, "val.txt")
    hits, union = np.zeros(11), np.zeros(11)
    for i, name in enumerate(dataset.names):
        prediction, (image, label) = (
            cv2.imread(str(tmp_path / "pred" / f"{name}.png"), cv2.IMREAD_UNCHANGED),
            dataset.load(i),
        )
        assert prediction.shape == label.shape
        assert cv2.imread(str(tmp_path / "vis" / f"{name}.png")).shape == image.shape
        prediction[label == 255] = 255
        for k in range(11):
            hits[k] += ((prediction == k) & (label == k)).sum()
            union[k] += ((prediction == k) | (label == k)).sum()
    assert result["miou"] == pytest.approx(np.mean(hits[union > 0] / union[union > 0]), abs=1e-9)


def test_two_ranks_give_the_figures_of_one(experiments, student, tmp_path, launch):
    """Five images on two ranks: a padded duplicate would show."""
    run(experiments["alone"], student, "--json", tmp_path / "one.json", "--scales", "1.0,1.5", "--flip")
    done = launch(
        "eval.py",
        experiments["alone"],
        student,
        "--json",
        tmp_path / "two.json",
        "--scales",
        "1.0,1.5",
        "--flip",
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for name in ("miou", "macc", "pixel_accuracy", "per_class_iou"):
        assert two[name] == one[name]
    assert one["eval"]["scales"] == [1.0, 1.5]
    assert one["eval"]["flip"] is True


def test_teacher_of_the_config(experiments, tmp_path):
    run(
        experiments["hmkd"],
        "--teacher",
        "--json",
        tmp_path / "t.json",
        "--mode",
        "slide",
        "--cfg-options",
        "eval.crop_size=(32,32)",
        "eval.stride=(16,16)",
    )
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["checkpoint"].endswith("teacher.safetensors")
    assert result["eval"]["mode"] == "slide"


def test_refusals_name_what_is_wrong(experiments, student, teacher_weights, tmp_path):
    assert "does not exist" in refused(experiments["alone"], tmp_path / "none.pt")
    assert "there is no teacher" in refused(experiments["alone"], "--teacher")
    assert "no test split" in refused(experiments["alone"], student, "--split", "test")
    assert "mode='slide' needs" in refused(experiments["alone"], student, "--mode", "slide")
    assert "missing" in refused(experiments["alone"], teacher_weights)  # another architecture
    (tmp_path / "half.safetensors").write_bytes(student.read_bytes()[:999])
    assert "half.safetensors" in refused(experiments["alone"], tmp_path / "half.safetensors")
