"""IFVD: values by hand, and what must hold of any method."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from losses.ifvd import IFVD, class_similarity
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

TINY = spec("cnn", (2, 2, 2, 2), (1, 1, 1, 1), Tap(2, 1), num_classes=2)
E1, E2 = (1.0, 0.0), (0.0, 1.0)


def strip(*vectors):
    """An image of one row of feature vectors -> an output whose 'head' tap it is."""
    return SegOutput(torch.zeros(1, 2, 1, len(vectors)), {"head": torch.tensor(vectors).T[None, :, None]}, None)


def with_head(head):
    return SegOutput(torch.zeros(len(head), 3, *head.shape[-2:]), {"head": head}, None)


def small_case(B=2, requires_grad=False):
    torch.manual_seed(0)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return IFVD(SMALL, LARGE), *outputs, random_labels(B, 6, 8)


def test_similarity_by_hand():
    x = strip(E1, E2, (3.0, 4.0), (9.0, -9.0)).taps["head"]
    cells = torch.tensor([[[0, 0, 1, 255]]])
    # Class 0's mean is (1/2, 1/2), at 45 degrees from both; class 1's is its only cell.
    expected = torch.tensor([[[math.sqrt(0.5), math.sqrt(0.5), 1.0, 0.0]]])
    torch.testing.assert_close(class_similarity(x, cells, 2), expected)


def test_loss_by_hand():
    method = IFVD(TINY, TINY)
    student, teacher = strip(E1, E2, E1, E2), strip(E1, E1, E2, (-5.0, 2.0))
    labels = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    labels[0, 0, 3] = 255
    # The student's cosines are sqrt 1/2, sqrt 1/2, 1; the teacher's all 1.
    expected = 2 * (1 - math.sqrt(0.5)) ** 2 / 3
    assert method(student, teacher, labels)["ifvd"].item() == pytest.approx(expected)
    assert method.counts(labels)["ifvd"].item() == 3


def test_means_are_of_one_image():
    method = IFVD(TINY, TINY)
    apart = [strip(E1, E1).taps["head"], strip(E2, E2).taps["head"]]  # one class, of another direction in each image
    student, teacher = with_head(torch.cat(apart)), with_head(torch.cat(apart[:1] * 2))
    assert method(student, teacher, torch.zeros(2, 1, 2, dtype=torch.uint8))["ifvd"].item() == pytest.approx(0)


def test_gradient_in_double_precision():
    method, student, teacher, labels = small_case(B=1)
    head = student.taps["head"].double().requires_grad_()
    teacher = with_head(teacher.taps["head"].double())
    assert method(with_head(head), teacher, labels)["ifvd"].dtype == torch.float64
    assert gradcheck(lambda x: method(with_head(x), teacher, labels)["ifvd"], head)


def test_a_student_that_equals_its_teacher_is_at_the_minimum():
    method, _, teacher, labels = small_case()
    head = teacher.taps["head"].clone().requires_grad_()
    loss = method(with_head(head), teacher, labels)["ifvd"]
    loss.backward()
    assert loss.item() == 0
    assert not head.grad.any()


@pytest.mark.parametrize(("student", "teacher"), [(RESNET18, MIT_B4), (MIT_B0, RESNET101)], ids=["B4->R18", "R101->B0"])
def test_networks_of_different_grids_and_widths(student, teacher):
    torch.manual_seed(0)
    pairs = [("stage4", "stage3"), ("head", "head")]
    method = IFVD(student, teacher, weight=20.0, pairs=pairs)
    s, t = (random_output(network, 2, 40, 56, requires_grad=True) for network in (student, teacher))
    labels = random_labels(2, 40, 56, num_classes=19)
    terms = method(s, t, labels)
    assert method.weights == {"ifvd/stage4-stage3": 10.0, "ifvd/head-head": 10.0}
    assert list(terms) == list(method.weights) == list(method.counts(labels))
    assert all(term.ndim == 0 and term.dtype == torch.float32 and term > 0 for term in terms.values())
    assert not list(method.parameters())
    sum(terms.values()).backward()
    assert s.taps["stage3"].grad.any()
    assert s.taps["head"].grad.any()
    assert all(x.grad is None for x in [s.logits, t.logits, *t.taps.values()])


def test_void_changes_neither_value_nor_gradient():
    method, student, teacher, labels = small_case(requires_grad=True)
    head, void = student.taps["head"], (labels == 255)[:, None].expand(-1, 4, -1, -1)
    before = method(student, teacher, labels)["ifvd"]
    (grad,) = torch.autograd.grad(before, head)
    with torch.no_grad():
        for output, value in ((student, torch.nan), (teacher, torch.inf)):
            output.taps["head"][void] = value
    after = method(student, teacher, labels)["ifvd"]
    assert after == before
    assert torch.equal(torch.autograd.grad(after, head)[0], grad)
    assert not grad[void].any()


def test_counts_make_split_batches_equal_the_whole_one():
    method, student, teacher, labels = small_case(B=4)
    labels[0], labels[1, :3] = 255, 255

    def total(part):
        s, t = (with_head(x.taps["head"][part]) for x in (student, teacher))
        return method(s, t, labels[part])["ifvd"] * method.counts(labels[part])["ifvd"]

    torch.testing.assert_close(sum(total(slice(i, i + 1)) for i in range(4)), total(slice(None)))


def test_lengths_turns_and_names_of_classes_do_not_matter():
    method, student, teacher, labels = small_case()
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    head = 7 * torch.einsum("cd,bdhw->bchw", turn, student.taps["head"])
    renamed = torch.cat([torch.tensor([2, 0, 1]), torch.full((253,), 255)])[labels.long()]
    torch.testing.assert_close(method(with_head(head), teacher, renamed), method(student, teacher, labels))


def test_doubling_the_resolution_does_not_matter():
    method, student, teacher, labels = small_case()

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    twice = method(*(with_head(double(x.taps["head"])) for x in (student, teacher)), double(labels))
    torch.testing.assert_close(twice, method(student, teacher, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_autocast_is_finite_at_extreme_values(dtype):
    method, student, teacher, labels = small_case()
    student, teacher = ((1e4 * x.taps["head"]).to(dtype) for x in (student, teacher))
    student[:, :, 0] = 0  # vectors without a direction
    student.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        term = method(with_head(student), with_head(teacher), labels)["ifvd"]
    term.backward()
    assert term.dtype == torch.float32
    assert term.isfinite()
    assert student.grad.isfinite().all()
    expected = method(with_head(student.float()), with_head(teacher.float()), labels)["ifvd"]
    assert torch.equal(term, expected)  # autocast changes no value


def test_all_void_is_zero_with_zero_gradient():
    method, student, teacher, labels = small_case(requires_grad=True)
    term = method(student, teacher, labels.fill_(255))["ifvd"]
    term.backward()
    assert term.item() == method.counts(labels)["ifvd"].item() == 0
    assert (student.taps["head"].grad == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "none may be negative"),
        ({"weight": 0.0}, "one at least must be positive"),
        ({"pairs": [("head", "haed")]}, "student tap in pairs 'haed'; did you mean 'head'"),
        ({"pairs": [("stage5", "head")]}, "teacher tap in pairs 'stage5'"),
        ({"pairs": []}, "pairs is"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IFVD(SMALL, LARGE, **options)


def test_a_map_that_is_not_as_declared_is_refused():
    method, student, teacher, labels = small_case()
    with pytest.raises(ValueError, match=r"the student's map is \(2, 4, 3, 8\)"):
        method(with_head(student.taps["head"][:, :, :3]), teacher, labels)
