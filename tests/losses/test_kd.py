"""KD by hand, and what must hold of every method that compares logits alone."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from losses.aicsd import AICSD
from losses.dist import DIST
from losses.dkd import DKD
from losses.dtkd import DTKD
from losses.kd import KD
from losses.labels import Labels
from models.base import ModelSpec, SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids

TERMS = {
    KD: ["kd"],
    DIST: ["dist_inter", "dist_intra"],
    DKD: ["dkd_target", "dkd_nontarget"],
    DTKD: ["dtkd_dynamic", "dtkd_kd"],
    AICSD: ["aicsd_relation", "aicsd_pixel"],
}
every_method = pytest.mark.parametrize("method", TERMS, ids=lambda method: method.__name__)


def output(logits):
    return SegOutput(logits, {}, None)


def small_case(B=2, scale=3.0, dtype=torch.float32):
    """Student's and teacher's logits, B 3 6 8, and labels with void."""
    torch.manual_seed(0)
    s, t = (scale * torch.randn(B, 3, 6, 8, dtype=dtype) for _ in range(2))
    return s.requires_grad_(), t, random_ids(B, 6, 8)


def test_kd_by_hand():
    spec = ModelSpec({"head": Tap(1, 1)}, 2, "cnn")
    teacher = torch.zeros(1, 2, 1, 3)
    teacher[0, 0, 0, 0] = 2 * math.log(3)  # at T = 2: p = (3/4, 1/4); uniform elsewhere, as the student
    teacher[0, 0, 0, 2] = 5.0  # void
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    terms = KD(spec, spec, temperature=2.0)(output(torch.zeros(1, 2, 1, 3)), output(teacher), Labels(labels))
    assert list(terms) == ["kd"]
    torch.testing.assert_close(
        terms["kd"].item(), 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rtol=1e-5, atol=0
    )


@every_method
def test_nothing_is_lost_where_the_student_is_the_teacher(method):
    s, _, labels = small_case()
    for name, term in method(SMALL, LARGE)(output(s), output(s), Labels(labels)).items():
        torch.testing.assert_close(term.item(), 0.0, atol=2e-6, rtol=0, msg=name)
        (grad,) = torch.autograd.grad(term, s, retain_graph=True)
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0, msg=name)


@every_method
def test_gradients_are_those_of_finite_differences(method):
    s, t, labels = small_case(scale=1.0, dtype=torch.float64)
    s, t, labels = s[..., :2, :4].detach().requires_grad_(), t[..., :2, :4], labels[:, :2, :4].contiguous()
    assert (labels == 255).any()
    build = method(SMALL, LARGE)
    assert gradcheck(lambda x: tuple(build(output(x), output(t), Labels(labels)).values()), s)


@every_method
def test_names_of_classes_do_not_matter(method):
    s, t, labels = small_case()
    permutation = torch.tensor([2, 0, 1])
    renamed = torch.cat([permutation, torch.full((253,), 255)])[labels.long()]
    logits = (output(x[:, permutation.argsort()]) for x in (s, t))
    build = method(SMALL, LARGE)
    torch.testing.assert_close(build(*logits, Labels(renamed.byte())), build(output(s), output(t), Labels(labels)))


@every_method
def test_a_constant_added_to_all_classes_of_a_cell_does_not_matter(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)
    before = build(output(s), output(t), Labels(labels))
    shift = 5 * torch.randn(2, 1, 6, 8) - 20  # whether the largest logit is positive does not matter either
    after = build(output(s + shift), output(t - shift), Labels(labels))
    for name in set(TERMS[method]) - {"aicsd_relation"}:  # which compares cells
        torch.testing.assert_close(after[name], before[name])


@every_method
def test_resolution_does_not_matter(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)
    twice = (x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (s, t, labels))
    s2, t2, labels2 = twice
    torch.testing.assert_close(
        build(output(s2), output(t2), Labels(labels2)), build(output(s), output(t), Labels(labels))
    )


@every_method
def test_wrong_arguments_are_refused(method):
    # Its weights are its arguments before the temperature, in the order of its terms.
    weights = dict(zip(list(method.__init__.__annotations__)[2:], TERMS[method], strict=False))
    for argument, term in weights.items():
        with pytest.raises(ValueError, match=f"'{term}': -1.*none may be negative"):
            method(SMALL, LARGE, **{argument: -1.0})
    with pytest.raises(ValueError, match="one at least must be positive"):
        method(SMALL, LARGE, **dict.fromkeys(weights, 0.0))
    for temperature in (0.0, -2.0):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; expected"):
            method(SMALL, LARGE, temperature=temperature)


@pytest.mark.parametrize("method", [DIST, DKD, DTKD, AICSD], ids=lambda method: method.__name__)
def test_terms_of_weight_zero_are_not_built(method):
    s, t, labels = small_case()
    arguments = list(method.__init__.__annotations__)[2:4]
    for argument, left in zip(arguments, reversed(TERMS[method]), strict=True):
        build = method(SMALL, LARGE, **{argument: 0.0})
        terms = build(output(s), output(t), Labels(labels))
        assert list(terms) == list(build.weights) == list(build.counts(Labels(labels))) == [left]
