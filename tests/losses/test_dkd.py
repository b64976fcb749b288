"""DKD by hand. What holds of every method of logits is in ``test_kd.py``."""

import math

import pytest
import torch

from losses.dkd import DKD, nontarget_divergence, target_divergence
from losses.functional import kl_divergence
from tests.losses.networks import LARGE, SMALL


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_both_parts_by_hand(temperature):
    """At the first cell y = 1; at the second the student is the teacher; the third is void."""
    student = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    teacher = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5], [0.8, 0.1, 0.1]])
    args = [temperature * x.log().T[None, :, None] for x in (student, teacher)]
    args += [torch.tensor([[[1, 0, 255]]], dtype=torch.uint8), temperature]
    target = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2  # (1/2, 1/2) against (1/4, 3/4)
    nontarget = (0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)) / 2  # (1/2, 1/2) against (2/3, 1/3)
    torch.testing.assert_close(target_divergence(*args).item(), temperature**2 * target)
    torch.testing.assert_close(nontarget_divergence(*args).item(), temperature**2 * nontarget)


def test_plain_distillation_is_the_target_part_and_a_share_of_the_other():
    torch.manual_seed(0)
    student, teacher = torch.randn(20, 5, 1, 1), torch.randn(20, 5, 1, 1)
    cells = torch.randint(5, (20, 1, 1))
    valid = torch.ones_like(cells, dtype=torch.bool)
    for s, t, y, v in zip(*(x.split(1) for x in (student, teacher, cells, valid)), strict=True):
        share = 1 - (t / 2).softmax(1)[0, y.item(), 0, 0]
        sum_of_parts = target_divergence(s, t, y, 2.0) + share * nontarget_divergence(s, t, y, 2.0)
        torch.testing.assert_close(sum_of_parts, kl_divergence(s, t, v, 2.0))


def test_where_the_true_class_is_certain_the_others_still_count():
    """p_y rounds to 1 on both sides; p_1 / (1 - p_y) = 3/4 for the teacher and 1/2 for the student."""
    student = torch.tensor([0.0, -3000.0, -3000.0], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    teacher = torch.tensor([0.0, math.log(3) - 3000, -3000.0], dtype=torch.float64).view(1, 3, 1, 1)
    args = student, teacher, torch.zeros(1, 1, 1, dtype=torch.uint8), 1.0
    assert target_divergence(*args).item() == 0
    loss = nontarget_divergence(*args)
    torch.testing.assert_close(loss.item(), 0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad.flatten().tolist(), [0.0, -0.25, 0.25])


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class: .*choose kd"):
        DKD(SMALL._replace(num_classes=1), LARGE._replace(num_classes=1))
