"""SKD: values by hand, and what must hold of any method."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from losses.skd import SKD, pairwise_distance, pool_nodes, valid_nodes
from models.base import SegOutput, Tap
from tests.losses.networks import (
    LARGE,
    MIT_B0,
    MIT_B4,
    RESNET18,
    RESNET101,
    SMALL,
    random_labels,
    random_output,
    spec,
)

TERMS = ["skd_pixel", "skd_pairwise"]
TINY = spec("cnn", (2, 2, 2, 2), (1, 1, 1, 1), Tap(2, 1), num_classes=2)
E1, E2 = (1.0, 0.0), (0.0, 1.0)


def square(*vectors):
    """Four feature vectors -> 1 2 2 2."""
    return torch.tensor(vectors).T.reshape(1, 2, 2, 2)


def output(logits, head):
    return SegOutput(logits, {"head": head}, None)


def small_case(B=2, requires_grad=False, **options):
    torch.manual_seed(0)
    method = SKD(SMALL, LARGE, **options)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_labels(B, 6, 8)


def part(x, index):
    return output(x.logits[index], x.taps["head"][index])


def leaves(x):
    return [x.logits, x.taps["head"]]


def test_pooling_by_hand():
    x = torch.arange(16.0).view(1, 1, 4, 4) - 20  # void is no 0 that would win
    x[0, 0, 0, 0] = 99
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = valid[0, 2:, 2:] = False
    assert pool_nodes(x, valid, 2)[..., 0].tolist() == [[-15, -13, -7, 0]]
    assert valid_nodes(valid, 2).tolist() == [[True, True, True, False]]
    assert pool_nodes(x, valid, 2).shape == (1, 4, 1)
    assert pool_nodes(x[:, :, :3, :3], valid[:, :3, :3], 2).shape == (1, 4, 1)  # odd sides: regions overlap


def test_pairwise_term_by_hand():
    method = SKD(TINY, TINY, pixel=0.0)
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2)
    student, teacher = output(logits, square(E1, E1, E2, E2)), output(logits, square(E1, (2.0, 0.0), E1, E1))
    # Of the 16 ordered pairs the student has 8 at right angles, which the teacher has parallel.
    assert method(student, teacher, labels)["skd_pairwise"].item() == pytest.approx(0.5)
    assert method.counts(labels)["skd_pairwise"].item() == 16
    labels[0, 1, 1] = 255
    assert method(student, teacher, labels)["skd_pairwise"].item() == pytest.approx(4 / 9)
    assert method.counts(labels)["skd_pairwise"].item() == 9


def test_pixel_term_by_hand():
    method = SKD(TINY, TINY, pairwise=0.0, temperature=2.0)
    teacher = output(torch.zeros(1, 2, 2, 2), square(E1, E1, E1, E1))
    student = output(torch.zeros(1, 2, 2, 2), teacher.taps["head"])
    teacher.logits[0, 0, 0, 0] = 2 * math.log(3)
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    labels[0, 1, 1] = 255
    # T^2 KL((3/4, 1/4) || (1/2, 1/2)) in one of three cells.
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 3
    assert method(student, teacher, labels)["skd_pixel"].item() == pytest.approx(expected)


def test_gradient_in_double_precision():
    method, student, teacher, labels = small_case(B=1)
    teacher = output(*(x.double() for x in leaves(teacher)))
    inputs = [x.double().requires_grad_() for x in leaves(student)]
    assert gradcheck(lambda *x: tuple(method(output(*x), teacher, labels).values()), inputs)


def test_a_student_that_equals_its_teacher_is_at_the_minimum():
    method, _, teacher, labels = small_case()
    student = [x.clone().requires_grad_() for x in leaves(teacher)]
    terms = method(output(*student), teacher, labels)
    assert {name: term.item() for name, term in terms.items()} == dict.fromkeys(TERMS, 0.0)
    sum(terms.values()).backward()
    assert all(x.grad.abs().max() < 1e-7 for x in student)


@pytest.mark.parametrize(("student", "teacher"), [(RESNET18, MIT_B4), (MIT_B0, RESNET101)], ids=["B4->R18", "R101->B0"])
def test_networks_of_different_grids_and_widths(student, teacher):
    torch.manual_seed(0)
    method = SKD(student, teacher, nodes=3)
    s, t = (random_output(network, 2, 40, 56, requires_grad=True) for network in (student, teacher))
    labels = random_labels(2, 40, 56, num_classes=19)
    terms = method(s, t, labels)
    assert list(terms) == list(method.weights) == list(method.counts(labels)) == TERMS
    assert all(term.ndim == 0 and term.dtype == torch.float32 and term > 0 for term in terms.values())
    assert method.counts(labels)["skd_pairwise"].item() == 2 * 81
    assert not list(method.parameters())
    sum(terms.values()).backward()
    assert all(x.grad.any() for x in leaves(s))
    assert all(x.grad is None for x in leaves(t))


def test_a_region_that_is_void_on_either_grid_is_left_out():
    coarse = spec("transformer", (2, 2, 2, 2), (2, 2, 2, 2), Tap(2, 2), num_classes=2)
    method = SKD(TINY, coarse, pixel=0.0)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 1, 1] = 255  # the pixel of the coarse grid's first cell; the fine grid has three more in that region
    assert method.counts(labels)["skd_pairwise"].item() == 9
    assert method.counts(torch.zeros_like(labels))["skd_pairwise"].item() == 16
    outputs = [random_output(network, 1, 4, 4) for network in (TINY, coarse)]
    before = method(*outputs, labels)
    outputs[0].taps["head"][..., :2, :2], outputs[1].taps["head"][..., :1, :1] = torch.nan, torch.inf
    assert method(*outputs, labels) == before


def test_void_changes_neither_value_nor_gradient():
    method, student, teacher, labels = small_case(requires_grad=True)
    labels[0, :3, :4] = 255  # a region
    void = (labels == 255)[:, None]

    def run():
        terms = method(student, teacher, labels)
        return terms, torch.autograd.grad(sum(terms.values()), leaves(student))

    terms, grads = run()
    with torch.no_grad():
        for x in leaves(student) + leaves(teacher):
            x[void.expand_as(x)] = torch.nan
    after, grads_after = run()
    assert after == terms
    assert all(map(torch.equal, grads_after, grads))
    assert not any(grad[void.expand_as(grad)].any() for grad in grads)


def test_counts_make_split_batches_equal_the_whole_one():
    method, student, teacher, labels = small_case(B=4)
    labels[0], labels[1, :3] = 255, 255

    def totals(index):
        terms, counts = method(part(student, index), part(teacher, index), labels[index]), method.counts(labels[index])
        return {name: terms[name] * counts[name] for name in TERMS}

    pieces = [totals([i]) for i in range(4)]
    torch.testing.assert_close({name: sum(p[name] for p in pieces) for name in TERMS}, totals(slice(None)))


def test_shifts_of_logits_lengths_and_names_of_classes_do_not_matter():
    method, student, teacher, labels = small_case()
    before, order = method(student, teacher, labels), torch.tensor([2, 0, 1])
    student, teacher = (
        output(x.logits[:, order] + torch.randn(2, 1, 6, 8), factor * x.taps["head"])
        for x, factor in ((student, 7.0), (teacher, 0.1))
    )
    torch.testing.assert_close(method(student, teacher, labels), before)


def test_a_turn_of_the_feature_space_does_not_matter_once_pooled():
    torch.manual_seed(0)
    student, teacher, valid = torch.randn(2, 4, 5), torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    turn, _ = torch.linalg.qr(torch.randn(5, 5))
    torch.testing.assert_close(
        pairwise_distance(student @ turn, teacher, valid), pairwise_distance(student, teacher, valid)
    )


def test_doubling_the_resolution_does_not_matter():
    method, student, teacher, labels = small_case()

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    twice = method(*(output(*map(double, leaves(x))) for x in (student, teacher)), double(labels))
    torch.testing.assert_close(twice, method(student, teacher, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_autocast_is_finite_at_extreme_values(dtype):
    method, *outputs, labels = small_case()
    outputs = [output((1e4 * x.logits.sign()).to(dtype), (1e4 * x.taps["head"]).to(dtype)) for x in outputs]
    outputs[0].taps["head"][:, :, :3, :4] = 0  # a region without a direction
    for x in leaves(outputs[0]):
        x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        terms = method(*outputs, labels)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert terms == method(*(output(*(y.float() for y in leaves(x))) for x in outputs), labels)
    sum(terms.values()).backward()
    assert all(x.grad.isfinite().all() for x in leaves(outputs[0]))


def test_all_void_is_zero_with_zero_gradient():
    method, student, teacher, labels = small_case(requires_grad=True)
    terms = method(student, teacher, labels.fill_(255))
    assert {name: term.item() for name, term in terms.items()} == dict.fromkeys(TERMS, 0.0)
    assert all(count.item() == 0 for count in method.counts(labels).values())
    sum(terms.values()).backward()
    assert all((x.grad == 0).all() for x in leaves(student))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel": -1.0}, "none may be negative"),
        ({"pixel": 0.0, "pairwise": 0.0}, "one at least must be positive"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"nodes": 1}, "nodes 1"),
        ({"pairs": [("haed", "head")]}, "teacher tap in pairs 'haed'; did you mean 'head'"),
        ({"pairs": [("head", "head")] * 2}, "different"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SKD(SMALL, LARGE, **options)


def test_other_classes_are_refused_where_logits_are_compared_only():
    teacher = LARGE._replace(num_classes=7)
    with pytest.raises(ValueError, match="student has 3 classes and the teacher 7"):
        SKD(SMALL, teacher)
    assert SKD(SMALL, teacher, pixel=0.0).weights == {"skd_pairwise": 1.0}


def test_several_pairs_share_the_weight_and_terms_of_weight_zero_are_not_built():
    pairs = [("stage3", "stage3"), ("stage4", "head")]
    method = SKD(SMALL, LARGE, pixel=0.0, pairwise=3.0, pairs=pairs)
    assert method.weights == {"skd_pairwise/stage3-stage3": 1.5, "skd_pairwise/stage4-head": 1.5}
    labels = random_labels(2, 6, 8)
    outputs = random_output(SMALL, 2, 6, 8), random_output(LARGE, 2, 6, 8)
    assert list(method(*outputs, labels)) == list(method.weights) == list(method.counts(labels))
    assert SKD(SMALL, LARGE, pairwise=0.0).weights == {"skd_pixel": 10.0}
