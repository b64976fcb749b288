"""Figures of targets and gradients, worked out by hand."""

import math

import pytest
import torch
from torch import nn

from losses.base import Method
from losses.functional import cross_entropy
from losses.labels import Labels
from models.base import SegOutput
from scripts._targets import cka, measure_targets, participation_ratio, share_between
from scripts.diagnose_method import measure_gradients
from tests.losses.networks import LARGE, SMALL, random_labels, random_output
from utils.names import OUTSIDE, VOID


def test_the_participation_ratio_of_known_variances():
    x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 7  # variances 9/2 and 1/2
    assert participation_ratio(x) == pytest.approx(10**2 / (9**2 + 1))
    rotation = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)))[0]
    assert participation_ratio(x @ rotation) == pytest.approx(100 / 82, rel=1e-5)
    assert participation_ratio(torch.cat([torch.eye(3), -torch.eye(3)])) == pytest.approx(3)
    assert participation_ratio(torch.tensor([[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]])) == pytest.approx(1)


def test_the_share_between_groups_weighs_them_by_their_cells():
    x = torch.tensor([[1.0], [3.0], [8.0]])  # mean 4: squares 9 + 1 + 16; the groups' means are 2 (twice) and 8
    assert share_between(x, torch.tensor([7, 7, 2])) == pytest.approx((2 * 4 + 16) / 26)
    assert share_between(x, torch.tensor([0, 1, 2])) == pytest.approx(1)
    assert share_between(x, torch.zeros(3)) == pytest.approx(0)
    wide = torch.cat([x, torch.tensor([[1.0], [-1.0], [0.0]])], dim=1)  # its variance lies within the first group
    assert share_between(wide, torch.tensor([7, 7, 2])) == pytest.approx(24 / 28)


def test_cka_ignores_rotation_scale_and_shift_and_is_0_for_unrelated_maps():
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1, rel=1e-5)
    assert cka(x, x * torch.tensor([9.0, 1.0, 1.0, 1.0])) < 0.9
    one, other = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert cka(one, other) == 0


class Steps(Method):
    """A map and three steps, each made from the map: 5 times as large, each image's mean everywhere, other channels."""

    weights = {"t": 1.0}  # noqa: RUF012

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def targets(self, student, teacher, labels):
        x = teacher.taps["stage3"]
        mean = x.mean((2, 3), keepdim=True).expand_as(x)
        return {"t": {"stage3": x, "scaled": 5 * x, "mean": mean, "learnt": x * self.gain}}


def test_each_step_is_measured_on_labelled_cells_and_against_the_step_before():
    torch.manual_seed(0)
    labels = Labels(torch.full((2, 4, 4), VOID, dtype=torch.uint8))
    labels.ids[0], labels.ids[1, :, :2], labels.ids[1, 2:, 2:] = 0, 1, OUTSIDE
    student, teacher = (random_output(network, 2, 4, 4) for network in (SMALL, LARGE))
    x = teacher.taps["stage3"]  # 2 12 2 2: class 0 in image 0, class 1 in the left cells of image 1
    x[1, :, :, 1] = 1e9
    gains = torch.ones(12, 1, 1), torch.linspace(-3, 3, 12)[:, None, None]
    found = measure_targets(*map(Steps, gains), [(student, teacher, labels)])["t"]

    cells = torch.cat([x[0].flatten(1).T, x[1, :, :, 0].T]).double()
    centred = cells - cells.mean(0)
    within = sum((part - part.mean(0)).square().sum() for part in (cells[:4], cells[4:])) / centred.square().sum()
    first = found["stage3"]
    assert first["class_share_before"] == pytest.approx(1 - within.item())  # here each class has its own image
    assert first["cka"] == pytest.approx(1)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
    expected = (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item()
    assert first["dimensions_before"] == first["dimensions_after"] == pytest.approx(expected)

    assert found["scaled"]["spatial_kept_before"] == pytest.approx(1)
    assert found["learnt"]["cka"] < 0.95
    assert found["learnt"]["dimensions_after"] != pytest.approx(found["learnt"]["dimensions_before"], rel=0.01)


def test_a_step_that_averages_each_image_keeps_no_spatial_variance():
    torch.manual_seed(0)
    outputs = *(random_output(network, 2, 4, 4) for network in (SMALL, LARGE)), random_labels(2, 4, 4, void=0.0)
    found = measure_targets(Steps(1.0), Steps(1.0), [outputs])["t"]
    assert found["mean"]["spatial_kept_before"] == pytest.approx(0, abs=1e-9)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return SegOutput(self.conv(images), {}, None)


class Gradients(Method):
    """The task itself, its negative, a sum over all cells inside the image, and a term without the student."""

    weights = {"task": 3.0, "against": 0.5, "inside": 1.0, "own": 1.0}  # noqa: RUF012

    def forward(self, student, teacher, labels):
        task = cross_entropy(student.logits, labels.at(1))
        inside = (student.logits[:, 0] * labels.at(1).inside).sum()
        return {"task": task, "against": -task, "inside": inside, "own": torch.ones((), requires_grad=True) * 2}


def test_the_cosine_of_a_term_with_the_task():
    torch.manual_seed(0)
    network = Network()
    images, ids = torch.randn(2, 3, 4, 4), random_labels(2, 4, 4).ids
    ids[:, 3] = OUTSIDE
    sample = {"image": images, "label": ids}
    found = measure_gradients(Gradients(), network, lambda images, positions: None, sample, sample)
    assert found["task"]["cosine"] == pytest.approx(1)
    assert found["against"]["cosine"] == pytest.approx(-1)
    assert found["own"] == {"grad_norm": 0, "cosine": None, "cosine_unlabelled": None}

    task = torch.autograd.grad(cross_entropy(network(images).logits, Labels(ids).at(1)), [*network.parameters()])
    task = torch.cat([part.flatten() for part in task])
    assert found["task"]["grad_norm"] == pytest.approx(3 * task.norm().item())
    assert found["task"]["cosine_unlabelled"] is None  # its labels are hidden
    # The term reads the first class's logit in the 24 cells that are no padding: it sums its weights and its bias.
    cells = images[:, :, :3].movedim(1, -1).flatten(0, 2).sum(0)
    inside = torch.cat([cells, torch.zeros(6), torch.tensor([24.0, 0.0, 0.0])])
    expected = (inside @ task / (inside.norm() * task.norm())).item()
    assert found["inside"]["cosine_unlabelled"] == pytest.approx(expected, rel=1e-4)
    assert math.isclose(found["inside"]["cosine"], expected, rel_tol=1e-4)
