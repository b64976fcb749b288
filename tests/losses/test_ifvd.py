"""IFVD: values by hand, and what must hold of any method."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from losses.ifvd import IFVD, class_similarity
from losses.labels import Labels
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids, random_output, spec, zero_labels

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
    return IFVD(SMALL, LARGE), *outputs, random_ids(B, 6, 8)


def test_similarity_by_hand():
    x = strip(E1, E2, (3.0, 4.0), (0.0, 0.0)).taps["head"]
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
    assert method(student, teacher, Labels(labels))["ifvd"].item() == pytest.approx(expected)
    assert method.counts(Labels(labels))["ifvd"].item() == 3


def test_means_are_of_one_image():
    method = IFVD(TINY, TINY)
    apart = [strip(E1, E1).taps["head"], strip(E2, E2).taps["head"]]  # one class, of another direction in each image
    student, teacher = with_head(torch.cat(apart)), with_head(torch.cat(apart[:1] * 2))
    assert method(student, teacher, zero_labels(2, 1, 2))["ifvd"].item() == pytest.approx(0)


def test_gradient_in_double_precision():
    method, student, teacher, labels = small_case(B=1)
    head = student.taps["head"].double().requires_grad_()
    teacher = with_head(teacher.taps["head"].double())
    assert method(with_head(head), teacher, Labels(labels))["ifvd"].dtype == torch.float64
    assert gradcheck(lambda x: method(with_head(x), teacher, Labels(labels))["ifvd"], head)


def test_a_student_that_equals_its_teacher_is_at_the_minimum():
    method, _, teacher, labels = small_case()
    head = teacher.taps["head"].clone().requires_grad_()
    loss = method(with_head(head), teacher, Labels(labels))["ifvd"]
    loss.backward()
    assert loss.item() == 0
    assert not head.grad.any()


def test_lengths_turns_and_names_of_classes_do_not_matter():
    method, student, teacher, labels = small_case()
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    head = 7 * torch.einsum("cd,bdhw->bchw", turn, student.taps["head"])
    renamed = torch.cat([torch.tensor([2, 0, 1]), torch.full((253,), 255)])[labels.long()]
    torch.testing.assert_close(
        method(with_head(head), teacher, Labels(renamed.byte())), method(student, teacher, Labels(labels))
    )


def test_doubling_the_resolution_does_not_matter():
    method, student, teacher, labels = small_case()

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    twice = method(*(with_head(double(x.taps["head"])) for x in (student, teacher)), Labels(double(labels)))
    torch.testing.assert_close(twice, method(student, teacher, Labels(labels)))


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
