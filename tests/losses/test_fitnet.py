"""FitNet by hand, and what must hold of every method that compares feature maps: FitNet, AT, CWD, MGD, Af-DCD."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from losses.afdcd import AfDCD
from losses.at import AT
from losses.cwd import CWD
from losses.fitnet import FitNet
from losses.labels import Labels
from losses.mgd import MGD
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, MIT_B4, RESNET18, SMALL, random_ids, random_output, spec

CONFIGS = Path(__file__).resolve().parents[2] / "configs/_base_/methods"
PAIR = ("stage1", "stage1")  # 6 channels of SMALL and 8 of LARGE on one grid
BUILD = {
    "fitnet": lambda s, t, pair=PAIR, **options: FitNet(s, t, pairs=[pair], **options),
    "at": lambda s, t, pair=PAIR, **options: AT(s, t, pairs=[pair], **options),
    "cwd": lambda s, t, pair=PAIR, **options: CWD(s, t, pairs=[pair], **options),
    "mgd": lambda s, t, pair=PAIR, **options: MGD(s, t, pairs=[pair], **options),
    "afdcd": lambda s, t, pair=PAIR, **options: AfDCD(s, t, pair=pair, groups=2, patch=2, pool=2, **options),
}
every_method = pytest.mark.parametrize("name", BUILD)


def small_case(name, B=2, size=(6, 8), requires_grad=False, **options):
    torch.manual_seed(0)
    method = BUILD[name](SMALL, LARGE, **options)
    outputs = [random_output(network, B, *size, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_ids(B, *size)


def seeded(method, *args):
    """The terms under one and the same mask."""
    torch.manual_seed(1)
    return method(*args)


def part(output, index):
    return SegOutput(output.logits[index], {name: tap[index] for name, tap in output.taps.items()}, None)


def leaves(output):
    return [output.logits, output.taps["stage1"]]


def gradients(terms, tensors):
    return torch.autograd.grad(sum(terms.values()), tensors, allow_unused=True, materialize_grads=True)


# FitNet


def test_fitnet_by_hand():
    student, teacher = (spec("cnn", (1,) * 4, (1,) * 4, Tap(width, 1), num_classes=2) for width in (1, 2))
    method = FitNet(student, teacher)
    with torch.no_grad():
        method.project["fitnet"].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    S = SegOutput(torch.zeros(1, 2, 1, 3), {"head": torch.tensor([[[[1.0, 3.0, 9.0]]]])}, None)
    T = SegOutput(torch.zeros(1, 2, 1, 3), {"head": torch.tensor([[[[0.0, 3.0, 5.0]], [[4.0, 5.0, 5.0]]]])}, None)
    # W S = (1, 2), (3, 6) against (0, 4), (3, 5); the third cell is void.
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    assert method(S, T, Labels(labels))["fitnet"].item() == pytest.approx((1 + 4 + 0 + 1) / 4)
    assert method.weights == {"fitnet": 10.0}


def test_fitnet_is_zero_where_the_map_makes_the_student_the_teacher():
    method, _, teacher, labels = small_case("fitnet", pair=("head", "head"))
    with torch.no_grad():
        method.project["fitnet"].weight.copy_(torch.eye(4).view(4, 4, 1, 1))
    assert method(teacher, teacher, Labels(labels))["fitnet"].item() == 0


def test_fitnet_does_not_depend_on_resolution():
    method, student, teacher, labels = small_case("fitnet")

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    twice = (SegOutput(double(x.logits), {n: double(f) for n, f in x.taps.items()}, None) for x in (student, teacher))
    torch.testing.assert_close(method(*twice, Labels(double(labels))), method(student, teacher, Labels(labels)))


# Every method


@every_method
def test_gradients_are_those_of_finite_differences(name):
    method, student, teacher, labels = small_case(name, B=2, size=(3, 4))
    method.double()
    teacher = SegOutput(teacher.logits.double(), {n: x.double() for n, x in teacher.taps.items()}, None)

    def terms(logits, features):
        output = SegOutput(logits, student.taps | {"stage1": features}, None)
        return tuple(seeded(method, output, teacher, Labels(labels)).values())

    assert gradcheck(terms, tuple(x.double().requires_grad_() for x in leaves(student)))


@pytest.mark.parametrize("method", [FitNet, AT, CWD, MGD])
def test_several_pairs_share_the_weight(method):
    torch.manual_seed(0)
    pairs = [("stage3", "stage4"), ["head", "head"]]
    several = method(SMALL, LARGE, pairs=pairs)
    (one, *_), (term, weight) = several.weights.values(), next(iter(method(SMALL, LARGE).weights.items()))
    assert list(several.weights)[:2] == [f"{term}/stage3-stage4", f"{term}/head-head"]
    assert one == weight / 2
    outputs = [random_output(network, 2, 6, 8) for network in (SMALL, LARGE)]
    labels = torch.zeros(2, 6, 8, dtype=torch.uint8)
    assert list(several(*outputs, Labels(labels))) == list(several.weights) == list(several.counts(Labels(labels)))
    cells = {term: count.item() for term, count in several.counts(Labels(labels)).items()}
    expected = (2, 2) if method is CWD else (2 * 3 * 4, 2 * 6 * 8)  # images, or cells at stride 2 and at stride 1
    assert tuple(cells.values())[:2] == expected


@every_method
@pytest.mark.parametrize(
    ("pair", "message"),
    [(("stag1", "stage1"), "unknown teacher tap .* 'stag1'"), (("stage1", "haed"), "unknown student tap .* 'haed'")],
)
def test_unknown_taps_are_refused(name, pair, message):
    with pytest.raises(ValueError, match=message):
        BUILD[name](SMALL, LARGE, pair=pair)


@pytest.mark.parametrize("method", [FitNet, AT, MGD])
@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_that_are_not_positive_are_refused(method, weight):
    with pytest.raises(ValueError, match=f"'weight': {weight}"):
        method(SMALL, LARGE, weight=weight)


@every_method
def test_the_shipped_config_builds(name):
    options = runpy.run_path(str(CONFIGS / f"{name}.py"))["distill"]
    kind = {"fitnet": FitNet, "at": AT, "cwd": CWD, "mgd": MGD, "afdcd": AfDCD}[options.pop("type")]
    with torch.device("meta"):
        assert kind(RESNET18, MIT_B4, **options).weights == kind(RESNET18, MIT_B4).weights
