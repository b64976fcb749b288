"""eval.py as a user runs it: figures, JSON, pictures, one process or two."""

import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import signal

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from configs.schema import Experiment
from datasets import build_dataset
from engine.checkpoint import save_student
from models import build_model
from utils import files
from utils.config import load_config


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
        "--per-image",
        tmp_path / "images.csv",
    )
    out, result = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())
    assert "Bicyclist" in out
    counted = sum(iou is not None for iou in result["per_class_iou"])
    assert out.splitlines()[-1] == (
        f"val split, 5 images, mean IoU over {counted} of 11 classes; fp32, mode whole, scales 1, no flip"
    )
    assert result["precision"] == "fp32"
    assert f"{100 * result['miou']:.2f}" in out
    assert result["sha256"] == hashlib.sha256(student.read_bytes()).hexdigest()
    assert result["split"] == "val"
    assert result["images"] == 5
    assert result["config"]["student"]["backbone"] == "mit_b0"
    assert result["environment"]["torch"]

    # The figures again, counted naively from the label files that were written.
    dataset = build_dataset("camvid", streets, "val.txt")
    hits, union = np.zeros(11), np.zeros(11)
    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == list(dataset.names)
    for i, name in enumerate(dataset.names):
        prediction, (image, label) = (
            cv2.imread(str(tmp_path / "pred" / f"{name}.png"), cv2.IMREAD_UNCHANGED),
            dataset.load(i),
        )
        assert prediction.shape == label.shape
        assert cv2.imread(str(tmp_path / "vis" / f"{name}.png")).shape == image.shape
        prediction[label == 255] = 255
        ious = []
        for k, name in enumerate(dataset.class_names):
            in_both, in_one = ((prediction == k) & (label == k)).sum(), ((prediction == k) | (label == k)).sum()
            hits[k] += in_both
            union[k] += in_one
            ious += [in_both / in_one] if in_one else []
            assert rows[i][f"iou {name}"] == (str(in_both / in_one) if in_one else "")
        assert float(rows[i]["miou"]) == pytest.approx(np.mean(ious))
        assert float(rows[i]["pixel_accuracy"]) == pytest.approx((prediction == label)[label != 255].mean())
        assert int(rows[i]["labelled_pixels"]) == (label != 255).sum()
    assert np.diag(result["confusion_matrix"]).tolist() == hits.tolist()
    assert np.sum(result["confusion_matrix"]) == sum(int(row["labelled_pixels"]) for row in rows)
    assert "boundary_miou" not in result
    assert result["miou"] == pytest.approx(np.mean(hits[union > 0] / union[union > 0]), abs=1e-9)


def test_two_ranks_give_the_figures_of_one(experiments, student, tmp_path, launch):
    """Five images on two ranks: a padded duplicate would show."""
    view = ["--scales", "1.0,1.5", "--flip", "--boundary", "--mode", "slide", "--cfg-options"]
    view += ["eval.crop_size=(32,48)", "eval.stride=(32,32)"]
    run(experiments["alone"], student, "--json", tmp_path / "one.json", "--per-image", tmp_path / "one.csv", *view)
    done = launch(
        "eval.py",
        experiments["alone"],
        student,
        "--json",
        tmp_path / "two.json",
        "--per-image",
        tmp_path / "two.csv",
        *view,
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    names = ("miou", "macc", "pixel_accuracy", "per_class_iou", "confusion_matrix")
    for name in (*names, "boundary_miou", "per_class_boundary_iou"):
        assert two[name] == one[name]
    assert "boundary IoU %" in done.stdout
    assert f"{100 * two['boundary_miou']:.2f}" in done.stdout
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
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


def test_a_checkpoint_alone_is_evaluated_with_the_config_that_it_holds(experiments, teacher_weights, tmp_path):
    config = load_config(experiments["alone"], Experiment, ["eval.scales=(0.75,)"])
    weights, alone = tmp_path / "student.safetensors", tmp_path / "alone.json"
    torch.manual_seed(1)
    network = build_model("mit_b0", "segformer", 11, width=16)
    about = {"network": config.student.network, "config": config.model_dump(mode="json")}
    save_student(weights, network.state_dict(), about)
    run(weights, "--json", alone)
    run(experiments["alone"], weights, "--scales", "0.75", "--json", tmp_path / "given.json")
    alone, given = (json.loads(path.read_text()) for path in (alone, tmp_path / "given.json"))
    assert alone["config"] == config.model_dump(mode="json")
    assert alone["eval"] == given["eval"]
    assert alone["confusion_matrix"] == given["confusion_matrix"]
    run(weights, "--json", tmp_path / "changed.json", "--cfg-options", "eval.scales=(1.0,)")
    assert json.loads((tmp_path / "changed.json").read_text())["eval"]["scales"] == [1.0]
    # A table's keys are numbers and colours again.
    tables = ["data.type=list", f"data.class_names={tuple('abcdefghijk')}", "data.id_table={0: 0, 7: 255}"]
    config = load_config(experiments["alone"], Experiment, [*tables, "data.color_table={(0, 0, 255): 10}"])
    assert load_config("x", Experiment, (), json.loads(config.model_dump_json())) == config
    assert refused(teacher_weights) == f"error: {teacher_weights} holds no config: give the config file before it"
    assert refused(tmp_path / "no.pt").startswith("error: ")


def test_refusals_name_what_is_wrong(experiments, student, teacher_weights, tmp_path):
    assert "does not exist" in refused(experiments["alone"], tmp_path / "none.pt")
    assert "there is no teacher" in refused(experiments["alone"], "--teacher")
    assert "no test split" in refused(experiments["alone"], student, "--split", "test")
    assert "mode='slide' needs" in refused(experiments["alone"], student, "--mode", "slide")
    assert "missing" in refused(experiments["alone"], teacher_weights)  # another architecture
    (tmp_path / "half.safetensors").write_bytes(student.read_bytes()[:999])
    assert "half.safetensors" in refused(experiments["alone"], tmp_path / "half.safetensors")


@pytest.mark.parametrize("option", ["--json", "--per-image"])
def test_a_file_that_cannot_be_written_is_refused_before_the_evaluation(
    experiments, student, tmp_path, option, monkeypatch
):
    monkeypatch.setattr(evaluation, "evaluate", None)  # calling it would be a TypeError
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path, tmp_path / "file" / "result"):
        message = refused(experiments["alone"], student, option, path)
        assert message.startswith(f"error: cannot write {path} (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_images_without_labels_have_empty_rows_and_a_split_without_labels_is_refused(
    experiments, student, streets, tmp_path
):
    pairs = [line.split() for line in (streets / "val.txt").read_text().splitlines()]
    lists = {"some": [*pairs[:2], pairs[2][:1]], "none": [pair[:1] for pair in pairs]}
    for name, lines in lists.items():
        (tmp_path / name).write_text("\n".join(map(" ".join, lines)))
    table, options = tmp_path / "images.csv", ["--cfg-options", f"data.val_list={tmp_path / 'some'}"]
    run(experiments["alone"], student, "--per-image", table, *options)
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert rows[3][1:4] == ["", "", "0"]
    assert set(rows[3][4:]) == {""}
    before = table.read_bytes()
    options = ["--cfg-options", f"data.val_list={tmp_path / 'none'}"]
    for asked in (["--per-image", table], ["--boundary"]):
        assert "data.val_list names no labels" in refused(experiments["alone"], student, *asked, *options)
    assert table.read_bytes() == before


forked = multiprocessing.get_context("fork")


def broken_off(number, *arguments):
    """An evaluation that gets the signal in the middle of its third prediction file; gives its exit code."""

    def main():
        written = []

        def replace(source, target, plain=os.replace):
            written.append(target)
            if len(written) == 3:
                os.kill(os.getpid(), number)
            plain(source, target)

        files.os.replace = replace
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        run(*arguments)

    process = forked.Process(target=main)
    process.start()
    process.join(60)
    return process.exitcode


def test_an_evaluation_killed_halfway_leaves_whole_files_and_runs_again(experiments, student, tmp_path):
    whole, killed = ([tmp_path / name / kind for kind in ("pred", "vis", "r.json")] for name in ("whole", "killed"))
    arguments = [
        [experiments["alone"], student, "--save-pred", pred, "--save-vis", vis, "--json", result]
        for pred, vis, result in (whole, killed)
    ]
    run(*arguments[0])
    assert broken_off(signal.SIGKILL, *arguments[1]) == -signal.SIGKILL
    assert not killed[2].exists()
    names = [{path.name for path in folder.iterdir() if path.suffix == ".png"} for folder in killed[:2]]
    assert 0 < len(names[0]) + len(names[1]) < 10
    for ours, theirs, found in zip(killed, whole, names, strict=False):
        for name in found:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    run(*arguments[1])
    for ours, theirs in zip(killed[:2], whole[:2], strict=True):
        contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (ours, theirs)]
        assert contents[0] == contents[1]
        assert len(contents[0]) == 5
    assert json.loads(killed[2].read_text())["miou"] == json.loads(whole[2].read_text())["miou"]


def test_ctrl_c_is_one_line(experiments, student, tmp_path, capfd):
    assert broken_off(signal.SIGINT, experiments["alone"], student, "--save-pred", tmp_path / "pred") == 1
    assert capfd.readouterr().err.strip().splitlines()[-1] == "interrupted"


def test_a_damaged_image_is_named_on_two_ranks(experiments, student, streets, tmp_path, launch):
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    image = root / (root / "val.txt").read_text().split()[0]
    image.write_bytes(image.read_bytes()[:200])
    options = ["--cfg-options", f"data.root={root}", "train.timeout=30"]
    done = launch("eval.py", experiments["alone"], student, *options, processes=2, timeout=120)
    assert done.returncode == 1
    assert f"error: {image} cannot be decoded" in done.stderr


def test_an_image_that_is_too_small_is_named_with_its_size_its_scale_and_what_to_set(
    experiments, student, streets, tmp_path
):
    data = tmp_path / "data"
    shutil.copytree(streets, data)
    files = [data / name for name in (data / "val.txt").read_text().splitlines()[2].split()]
    for path in files:
        Image.open(path).crop((0, 0, 30, 20)).save(path)
    options = ["--cfg-options", f"data.root={data}"]
    assert refused(experiments["alone"], student, "--scales", "2.0,0.7", *options) == (
        f"error: {files[0]}: the image has 20 x 30 pixels (H x W), 14 x 21 at scale 0.7; the network needs at least "
        "29 x 29: leave it out, or evaluate at scales of 1.45 or more (eval.scales, --scales)"
    )
    run(experiments["alone"], student, "--scales", "1.45", *options)
