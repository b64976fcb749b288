"""Two classes, the fewest there are: from label files to figures, and one step of every method."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import train_kd
from engine.optim import gradient_norms
from losses import build_method
from losses.dist import inter_class_distance
from losses.dkd import nontarget_divergence
from losses.labels import Labels
from models import build_model
from tests.conftest import ROOT
from tests.losses.networks import random_ids
from utils.config import load_section

# The synthetic streets' Road (3) and Pavement (4) against all the rest.
GROUND = """
_base_ = [{base!r}]
data = dict(
    _delete_=True, type="list", root={root!r}, crop_size=(32, 48), workers=0, class_names=["other", "ground"],
    id_table={{0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 0, 6: 0, 7: 0, 8: 0, 9: 0, 10: 0, 11: 255}},
)
schedule = dict(max_iters=4)
eval = dict(interval=2)
"""
NETWORK = """
student = dict(_delete_=True, backbone="test_resnet", head="deeplabv3", output_stride=16, width=8)
"""
DISTILL = """
_base_ = ["ground.py"]
teacher = dict(weights={weights!r})
distill = dict(methods=[dict(type="kd", weight=0.5), dict(type="hmkd")])
"""
METHOD_FILES = sorted((ROOT / "configs/_base_/methods").glob("*.py"))
# Terms that teach the student nothing: anchors, which learn from the labels, and what two classes leave nothing to.
SILENT = {"anchor", "relation_anchor", "heteroakd_anchor", "dkd_nontarget", "dist_inter"}


def run(main, *arguments):
    main([str(argument) for argument in arguments])


def lines(work_dir):
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, experiments, streets):
    """A teacher, trained alone, and a student of another family that learned from it by two methods at once."""
    folder = tmp_path_factory.mktemp("binary")
    (folder / "ground.py").write_text(GROUND.format(base=experiments["alone"], root=str(streets)))
    (folder / "teacher.py").write_text("_base_ = ['ground.py']" + NETWORK)
    run(train_kd.main, folder / "teacher.py", "--work-dir", folder / "teacher")
    weights = str(folder / "teacher" / "student.safetensors")
    (folder / "distill.py").write_text(DISTILL.format(weights=weights))
    run(train_kd.main, folder / "distill.py", "--work-dir", folder / "student")
    return folder


def test_the_loss_is_the_weighted_sum_of_both_methods(folder):
    trained = [line for line in lines(folder / "student") if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    for line in trained:
        total = line["task"] + 0.5 * line["kd"] + line["feature"] + line["anchor"] + line["logit"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
        assert line["kd"] == pytest.approx(line["logit"], rel=1e-6)  # one and the same divergence, by two modules


def test_a_resumed_run_ends_as_the_uninterrupted_one(folder, tmp_path):
    (tmp_path / "step_2.pt").write_bytes((folder / "student" / "step_2.pt").read_bytes())
    run(train_kd.main, folder / "distill.py", "--work-dir", tmp_path, "--resume")
    ends = [torch.load(path / "last.pt", weights_only=True) for path in (folder / "student", tmp_path)]
    for part in ("student", "method"):
        one, two = (end[part] for end in ends)
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_figures_are_those_counted_from_the_files(folder, streets, tmp_path, who):
    network = ["--teacher"] if who == "teacher" else [folder / "student" / "student.safetensors"]
    out = ["--json", tmp_path / "r.json", "--save-pred", tmp_path / "pred"]
    run(evaluation.main, folder / "distill.py", *network, *out)
    result = json.loads((tmp_path / "r.json").read_text())

    def read(path):
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

    counts = np.zeros((2, 2))  # truth by prediction: ground or not
    for line in (streets / "val.txt").read_text().splitlines():
        image, label = line.split()
        label, prediction = read(streets / label), read(tmp_path / "pred" / f"{Path(image).stem}.png")
        truth, predicted = np.isin(label, (3, 4)), np.isin(prediction, (3, 4))
        np.add.at(counts, (truth[label < 11].astype(int), predicted[label < 11].astype(int)), 1)
    right = counts.diagonal()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    assert result["class_names"] == ["other", "ground"]
    assert result["per_class_iou"] == pytest.approx(iou.tolist())
    assert result["miou"] == pytest.approx(iou.mean())
    assert result["pixel_accuracy"] == pytest.approx(right.sum() / counts.sum())
    if who == "student":
        assert result["miou"] == max(line["miou"] for line in lines(folder / "student") if "miou" in line)


@pytest.mark.parametrize("swap", [False, True], ids=["cnn->transformer", "transformer->cnn"])
@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.stem)
def test_one_step_of_every_method(file, swap):
    """Every term is finite and its gradient reaches the student."""
    torch.manual_seed(0)
    cnn = build_model("test_resnet", "deeplabv3", 2, output_stride=16, width=8)
    transformer = build_model("mit_b0", "segformer", 2, width=16)
    student, teacher = (cnn, transformer) if swap else (transformer, cnn)
    images = torch.randint(256, (4, 3, 48, 64), dtype=torch.uint8)
    labels = random_ids(4, 48, 64, num_classes=2)
    labels[1][labels[1] == 1] = 0  # an image without the class that is looked for
    section = load_section(file, "distill")
    if "threshold" in section:
        section["threshold"] = 0.0  # an untrained teacher is never confident
    method = build_method(student=student.spec, teacher=teacher.spec, **section)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith("relate_student.query.weight"):
                parameter.normal_()  # starts at 0, where the relation has no gradient yet
        knowledge = teacher.eval()(images)
    method.calibrate(lambda: [(knowledge, Labels(labels))])
    terms = method(student.train()(images), knowledge, Labels(labels))
    assert terms.keys() == method.weights.keys()
    assert all(term.isfinite() and term > -1e-6 for term in terms.values())
    norms = gradient_norms(terms, method.weights, student)
    assert all(math.isfinite(norm) for norm in norms.values())
    assert [name for name, norm in norms.items() if norm < 1e-4 and name not in SILENT] == []


def test_what_two_classes_leave_nothing_to():
    """One class beside the true one has all of the rest; two numbers go together or against each other."""
    cells = torch.tensor([[[0, 1, 1, 255]]])
    teacher = torch.tensor([2.0, -1.0, 3.0, 1.0]).view(1, 1, 1, 4)
    student = torch.tensor([1.0, 0.5, 0.1, -9.0]).view(1, 1, 1, 4).requires_grad_()  # of another mind in one cell of 3
    logits = [torch.cat([x, torch.zeros_like(x)], dim=1) for x in (student, teacher)]
    rest, inter = (distance(*logits, cells, 1.0) for distance in (nontarget_divergence, inter_class_distance))
    assert rest == 0
    assert inter.item() == pytest.approx(2 / 3)
    (gradient,) = torch.autograd.grad(rest + inter, student)
    assert gradient.abs().max() < 1e-5
