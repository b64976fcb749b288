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
from models.base import ModelSpec, SegOutput, Tap
from tests.losses.networks import LARGE, MIT_B0, MIT_B4, RESNET18, RESNET101, SMALL, random_labels, random_output

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
    return s.requires_grad_(), t, random_labels(B, 6, 8)


def test_kd_by_hand():
    spec = ModelSpec({"head": Tap(1, 1)}, 2, "cnn")
    teacher = torch.zeros(1, 2, 1, 3)
    teacher[0, 0, 0, 0] = 2 * math.log(3)  # at T = 2: p = (3/4, 1/4); uniform elsewhere, as the student
    teacher[0, 0, 0, 2] = 5.0  # void
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    terms = KD(spec, spec, temperature=2.0)(output(torch.zeros(1, 2, 1, 3)), output(teacher), labels)
    assert list(terms) == ["kd"]
    torch.testing.assert_close(
        terms["kd"].item(), 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rtol=1e-5, atol=0
    )


@every_method
@pytest.mark.parametrize(("student", "teacher"), [(RESNET18, MIT_B4), (MIT_B0, RESNET101)], ids=["B4->R18", "R101->B0"])
def test_networks_of_different_grids(method, student, teacher):
    torch.manual_seed(0)
    build = method(student, teacher)
    s, t = (random_output(network, 2, 40, 56, requires_grad=True) for network in (student, teacher))
    labels = random_labels(2, 40, 56, num_classes=19)
    terms = build(s, t, labels)
    assert list(terms) == list(build.weights) == list(build.counts(labels)) == TERMS[method]
    assert all(term.ndim == 0 and term.dtype == torch.float32 and term > 0 for term in terms.values())
    for term in terms.values():
        (grad,) = torch.autograd.grad(term, s.logits, retain_graph=True)
        assert grad.any()
    sum(terms.values()).backward()
    assert t.logits.grad is None


@every_method
def test_nothing_is_lost_where_the_student_is_the_teacher(method):
    s, _, labels = small_case()
    for name, term in method(SMALL, LARGE)(output(s), output(s), labels).items():
        torch.testing.assert_close(term.item(), 0.0, atol=2e-6, rtol=0, msg=name)
        (grad,) = torch.autograd.grad(term, s, retain_graph=True)
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0, msg=name)


@every_method
def test_gradients_are_those_of_finite_differences(method):
    s, t, labels = small_case(scale=1.0, dtype=torch.float64)
    s, t, labels = s[..., :2, :4].detach().requires_grad_(), t[..., :2, :4], labels[:, :2, :4].contiguous()
    assert (labels == 255).any()
    build = method(SMALL, LARGE)
    assert gradcheck(lambda x: tuple(build(output(x), output(t), labels).values()), s)


@every_method
def test_void_cells_of_either_side_change_nothing(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)

    def run():
        terms = build(output(s), output(t), labels)
        return terms, torch.autograd.grad(2**16 * sum(terms.values()), s)[0]  # as scaled for half precision

    terms, grad = run()
    void = (labels == 255)[:, None].expand_as(s)
    with torch.no_grad():
        s[void], t[void] = torch.nan, torch.inf
    after, grad_after = run()
    assert after == terms
    assert torch.equal(grad_after, grad)
    assert not grad[void].any()


@every_method
def test_counts_make_split_batches_equal_the_whole_one(method):
    s, t, labels = small_case(B=4)
    labels[0], labels[1, :3] = 255, 255
    build = method(SMALL, LARGE)
    whole, counts = build(output(s), output(t), labels), build.counts(labels)
    pieces = dict.fromkeys(whole, 0.0)
    for part in (slice(0, 1), slice(1, 2), slice(2, 4)):
        for name, term in build(output(s[part]), output(t[part]), labels[part]).items():
            pieces[name] += term * build.counts(labels[part])[name] / counts[name]
    torch.testing.assert_close(pieces, whole)


@every_method
def test_counts_are_cells_of_the_logits_or_images(method):
    labels = torch.zeros(3, 40, 56, dtype=torch.uint8)
    labels[0], labels[1, :8] = 255, 255  # logits at 1/8: 5 x 7 cells, of which an image loses 7
    per_image = {"dist_intra", "aicsd_relation"}
    counts = method(RESNET18, MIT_B4).counts(labels)
    assert {name: count.item() for name, count in counts.items()} == {
        name: 2 if name in per_image else 63 for name in TERMS[method]
    }


@every_method
def test_all_void_is_zero_with_zero_gradient(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)
    terms = build(output(s), output(t), labels.fill_(255))
    assert all(term.item() == 0 for term in terms.values())
    assert all(count.item() == 0 for count in build.counts(labels).values())
    sum(terms.values()).backward()
    assert (s.grad == 0).all()


@every_method
def test_names_of_classes_do_not_matter(method):
    s, t, labels = small_case()
    permutation = torch.tensor([2, 0, 1])
    renamed = torch.cat([permutation, torch.full((253,), 255)])[labels.long()]
    logits = (output(x[:, permutation.argsort()]) for x in (s, t))
    build = method(SMALL, LARGE)
    torch.testing.assert_close(build(*logits, renamed), build(output(s), output(t), labels))


@every_method
def test_a_constant_added_to_all_classes_of_a_cell_does_not_matter(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)
    before = build(output(s), output(t), labels)
    shift = 5 * torch.randn(2, 1, 6, 8) - 20  # whether the largest logit is positive does not matter either
    after = build(output(s + shift), output(t - shift), labels)
    for name in set(TERMS[method]) - {"aicsd_relation"}:  # which compares cells
        torch.testing.assert_close(after[name], before[name])


@every_method
def test_resolution_does_not_matter(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)
    twice = (x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (s, t, labels))
    s2, t2, labels2 = twice
    torch.testing.assert_close(build(output(s2), output(t2), labels2), build(output(s), output(t), labels))


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_half_precision_autocast_is_finite_at_extreme_values(method, dtype, scale):
    torch.manual_seed(0)
    s = (scale * torch.randn(2, 3, 6, 8).sign()).to(dtype).requires_grad_()
    t = (1e4 * torch.randn(2, 3, 6, 8).sign()).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        terms = method(SMALL, LARGE)(output(s), output(t), random_labels(2, 6, 8))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert s.grad.isfinite().all()


@every_method
def test_autocast_changes_no_value(method):
    s, t, labels = small_case()
    build = method(SMALL, LARGE)
    expected = build(output(s), output(t), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build(output(s), output(t), labels) == expected


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
    with pytest.raises(ValueError, match="3 classes and the teacher 7"):
        method(SMALL, LARGE._replace(num_classes=7))
    s, t, labels = small_case()
    with pytest.raises(ValueError, match="the student's logits"):
        method(SMALL, LARGE)(output(s[..., :4]), output(t), labels)


@pytest.mark.parametrize("method", [DIST, DKD, DTKD, AICSD], ids=lambda method: method.__name__)
def test_terms_of_weight_zero_are_not_built(method):
    s, t, labels = small_case()
    arguments = list(method.__init__.__annotations__)[2:4]
    for argument, left in zip(arguments, reversed(TERMS[method]), strict=True):
        build = method(SMALL, LARGE, **{argument: 0.0})
        terms = build(output(s), output(t), labels)
        assert list(terms) == list(build.weights) == list(build.counts(labels)) == [left]
