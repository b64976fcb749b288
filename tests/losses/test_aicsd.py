"""AICSD by hand. What holds of every method of logits is in ``test_kd.py``."""

import math

import torch
from torch.distributions import Categorical, kl_divergence

from losses.aicsd import class_mean_divergence, class_relation, relation_distance
from losses.base import pixel_divergence


def test_relation_by_hand():
    """Over the two valid cells the teacher's P_0 = (3/4, 1/4) and P_1 = (1/4, 3/4): KL is ln(3) / 2 both ways, < 1.

    The student's are uniform: KL = 0. The second image's sides are equal; the third is void.
    """
    student, teacher = torch.zeros(3, 2, 1, 3), torch.zeros(3, 2, 1, 3)
    teacher[0, 0, 0, 0] = teacher[0, 1, 0, 1] = 2 * math.log(3)  # at T = 2
    teacher[0, 0, 0, 2] = 50.0  # void
    cells = torch.tensor([[[0, 1, 255]], [[0, 0, 0]], [[255, 255, 255]]])
    loss = relation_distance(student, teacher, cells, 2.0)
    torch.testing.assert_close(loss.item(), 2 * (math.log(3) / 2) ** 2 / 4 / 2)


def test_rows_are_divergences_divided_by_their_length():
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 4, 3, 5)
    valid = torch.rand(2, 3, 5) < 0.8
    relation = class_relation(logits, valid, 1.5)
    for b in range(2):
        places = [Categorical(logits=logits[b, k][valid[b]] / 1.5) for k in range(4)]
        expected = torch.tensor([[kl_divergence(p, q) for q in places] for p in places])
        assert (expected.norm(dim=1) > 1).all()
        torch.testing.assert_close(relation[b], expected / expected.norm(dim=1, keepdim=True))


def test_a_constant_added_to_a_class_does_not_matter_but_to_a_cell_does():
    torch.manual_seed(0)
    logits, valid = torch.randn(1, 3, 4, 5), torch.ones(1, 4, 5, dtype=torch.bool)
    relation = class_relation(logits, valid, 1.0)
    torch.testing.assert_close(class_relation(logits + torch.randn(1, 3, 1, 1), valid, 1.0), relation)
    assert not torch.allclose(class_relation(logits + torch.randn(1, 1, 4, 5), valid, 1.0), relation)


def test_an_untrained_student_gets_no_large_gradient():
    """All classes nearly everywhere alike: the gradient vanishes with the logits instead of growing."""
    torch.manual_seed(0)
    direction, teacher, cells = torch.randn(1, 3, 4, 5), 5 * torch.randn(1, 3, 4, 5), torch.zeros(1, 4, 5)

    def gradient(scale):
        student = (scale * direction).requires_grad_()
        return torch.autograd.grad(relation_distance(student, teacher, cells, 1.0), student)[0].norm()

    assert gradient(1e-3) < 0.2 * gradient(1e-2) < 0.04 * gradient(1e-1)


def test_pixel_term_is_a_mean_over_classes_too():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    args = student, teacher, torch.zeros(2, 3, 4), 1.0
    torch.testing.assert_close(class_mean_divergence(*args), pixel_divergence(*args) / 5)
