"""DIST by hand. What holds of every method of logits is in ``test_kd.py``."""

import math

import pytest
import torch

from losses.dist import inter_class_distance, intra_class_distance


def logits(*cells):
    """Probabilities of each cell -> 1 K 1 N logits."""
    return torch.tensor(cells).log().T[None, :, None]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_inter_by_hand(temperature):
    """Centred, (.6, .2, .2) is (4, -2, -2) / 15: correlation -1/2 with its permutation, 1 with (.4, .3, .3)."""
    student = logits((0.6, 0.2, 0.2), (0.6, 0.2, 0.2), (0.9, 0.05, 0.05))
    teacher = logits((0.2, 0.6, 0.2), (0.4, 0.3, 0.3), (0.05, 0.9, 0.05))
    cells = torch.tensor([[[0, 1, 255]]])
    loss = inter_class_distance(temperature * student, temperature * teacher, cells, temperature)
    torch.testing.assert_close(loss.item(), temperature**2 * (1.5 + 0) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_intra_by_hand(temperature):
    """Over an image's valid cells (-.3, 0, .3) and (-.2, -.2, .4), of both classes: correlation .18 / sqrt(.18 * .24).

    The next image's is -1; the last one is void.
    """

    def images(*class_0):
        return temperature * torch.cat([logits(*((p, 1 - p) for p in image)) for image in class_0])

    student = images((0.2, 0.5, 0.8, 0.1), (0.5, 0.5, 0.2, 0.8), (0.1, 0.2, 0.3, 0.4))
    teacher = images((0.3, 0.3, 0.9, 0.9), (0.1, 0.1, 0.7, 0.3), (0.4, 0.3, 0.2, 0.1))
    cells = torch.tensor([[[0, 1, 0, 255]], [[255, 0, 0, 255]], [[255, 255, 255, 255]]])
    loss = intra_class_distance(student, teacher, cells, temperature)
    expected = temperature**2 * (1 - math.sqrt(3) / 2 + 2) / 2
    torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=1e-5)


def test_intra_does_not_mind_a_linear_map_of_the_probabilities():
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 4, 4).softmax(1)
    student = 0.2 + 0.4 * teacher  # sums to 1 again
    cells = torch.zeros(2, 4, 4)
    for distance in (inter_class_distance, intra_class_distance):
        torch.testing.assert_close(distance(student.log(), teacher.log(), cells, 1.0).item(), 0.0, atol=1e-5, rtol=0)
