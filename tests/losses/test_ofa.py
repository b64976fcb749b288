"""OFA: values by hand, and what must hold of any method."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from losses.labels import Labels
from losses.ofa import OFA, enhanced_cross_entropy
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids, random_output, spec

TERMS = ["ofa_stage", "ofa_logit"]
TINY = spec("cnn", (2, 2, 2, 2), (1, 1, 2, 2), Tap(2, 1), num_classes=2)


def small_case(B=2, requires_grad=False, **options):
    torch.manual_seed(0)
    method = OFA(SMALL, LARGE, **options)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_ids(B, 6, 8)


def part(x, index):
    return SegOutput(x.logits[index], {name: tap[index] for name, tap in x.taps.items()}, None)


def leaves(x):
    return [x.logits, *(tap for name, tap in x.taps.items() if name != "head")]


def void_on(labels, x):
    """Where the cells of a map are void, in its shape; cells of two pixels have their centre in the second."""
    step = labels.shape[-1] // x.shape[-1]
    return (labels[:, step // 2 :: step, step // 2 :: step] == 255)[:, None].expand_as(x)


def cell(*logits):
    return torch.tensor(logits).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("eps", "label", "target"),
    [
        (1.0, 0, (0.75, 0.25)),  # the teacher's own
        (2.0, 0, (1.75**2 - 1, 0.25**2)),
        (2.0, 1, (0.75**2, 1.25**2 - 1)),
    ],
)
def test_enhanced_cross_entropy_by_hand(eps, label, target):
    student, teacher = cell(math.log(4), 0.0), cell(math.log(3), 0.0)  # p_s = (4/5, 1/5), p_t = (3/4, 1/4)
    loss = enhanced_cross_entropy(student, teacher, torch.full((1, 1, 1), label), eps)
    assert loss.item() == pytest.approx(target[0] * math.log(5 / 4) + target[1] * math.log(5))


def test_terms_by_hand():
    method = OFA(TINY, TINY, eps=2.0).eval()  # stages 3 and 4 have one cell
    with torch.no_grad():
        for exit_, bias in zip(method.exits.values(), (0.0, 0.0, math.log(4), math.log(4)), strict=True):
            exit_[-1].weight.zero_()
            exit_[-1].bias.copy_(torch.tensor([bias, 0.0]))
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    labels[0, 0, 1] = 255
    student, teacher = random_output(TINY, 1, 2, 2), random_output(TINY, 1, 2, 2)
    student.logits.zero_()
    teacher.logits[:] = cell(math.log(3), 0.0)
    unsure = (33 / 16 + 1 / 16) * math.log(2)
    sure = 33 / 16 * math.log(5 / 4) + 1 / 16 * math.log(5)
    terms = method(student, teacher, Labels(labels))
    assert terms["ofa_logit"].item() == pytest.approx(unsure)
    assert terms["ofa_stage"].item() == pytest.approx((unsure + sure) / 2)
    assert {name: count.item() for name, count in method.counts(Labels(labels)).items()} == dict.fromkeys(TERMS, 3)


def test_least_at_the_normalised_target():
    torch.manual_seed(0)
    teacher, cells = torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.randint(3, (1, 4, 5))
    y = torch.nn.functional.one_hot(cells, 3).permute(0, 3, 1, 2)
    for eps in (1.0, 1.5):
        best = ((teacher.softmax(1) + y) ** eps - y).log().requires_grad_()
        loss = enhanced_cross_entropy(best, teacher, cells, eps)
        (grad,) = torch.autograd.grad(loss, best)
        assert grad.abs().max() < 1e-15
        assert loss < enhanced_cross_entropy(best + 0.1 * torch.randn_like(best), teacher, cells, eps)
        if eps == 1:  # no enhancement: the teacher's own distribution
            torch.testing.assert_close(best.softmax(1), teacher.softmax(1))


def test_gradient_in_double_precision():
    torch.manual_seed(0)
    method = OFA(TINY, TINY, stages=["stage1", "stage3"]).double()
    student, teacher = random_output(TINY, 2, 2, 4), random_output(TINY, 2, 2, 4)
    teacher = teacher._replace(logits=teacher.logits.double())
    labels = random_ids(2, 2, 4, num_classes=2)

    def terms(logits, stage1, stage3):
        taps = {"stage1": stage1, "stage3": stage3}
        return tuple(method(SegOutput(logits, taps, None), teacher, Labels(labels)).values())

    inputs = [student.logits, student.taps["stage1"], student.taps["stage3"]]
    assert gradcheck(terms, [x.double().requires_grad_() for x in inputs])


def test_shifts_of_logits_names_of_classes_and_the_resolution_do_not_matter():
    method, student, teacher, labels = small_case(stage=0.0)
    before, order = method(student, teacher, Labels(labels)), torch.tensor([2, 0, 1])
    labels = torch.cat([order.argsort(), torch.full((253,), 255)])[labels.long()].byte()
    student, teacher = (x._replace(logits=x.logits[:, order] + torch.randn(2, 1, 6, 8)) for x in (student, teacher))
    torch.testing.assert_close(method(student, teacher, Labels(labels)), before)

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    student, teacher = (x._replace(logits=double(x.logits)) for x in (student, teacher))
    torch.testing.assert_close(method(student, teacher, Labels(double(labels))), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": -1.0}, "none may be negative"),
        ({"stage": 0.0, "logit": 0.0}, "one at least must be positive"),
        ({"eps": 0.5}, "eps is 0.5"),
        ({"stages": ["stag4"]}, "student tap in stages 'stag4'; did you mean 'stage4'"),
        ({"stages": []}, "stages is"),
        ({"stages": "stage4"}, "stages is stage4"),
        ({"stages": ["stage4", "stage4"]}, "different"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OFA(SMALL, LARGE, **options)


def test_terms_of_weight_zero_are_not_built():
    assert not list(OFA(SMALL, LARGE, stage=0.0).parameters())
    method, student, teacher, labels = small_case(logit=0.0, stages=["head"])
    assert list(method(student, teacher, Labels(labels))) == list(method.weights) == ["ofa_stage"]
    assert list(method.exits) == ["head"]
