"""Self-training by hand."""

import math

import pytest
import torch

from losses import build_method
from losses.labels import Labels
from models.base import SegOutput
from tests.losses.networks import SMALL
from utils.names import OUTSIDE


def test_confident_decisions_count_and_the_mean_is_over_all_compared_pixels():
    """Three pixels inside and one of padding, K classes. The teacher is sure (.9 and more) of class 1 at two of them.

    The student gives every class the same logit, so the cross-entropy of a pixel is ln K.
    """
    K = SMALL.num_classes
    teacher = torch.zeros(1, K, 1, 4)
    sure = math.log(0.9 / 0.1 * (K - 1))  # softmax 0.9 against K - 1 logits of 0
    teacher[0, 1, 0] = torch.tensor([sure + 0.1, sure - 0.1, sure + 5, sure + 5])
    student = torch.zeros(1, K, 1, 4, requires_grad=True)
    labels = Labels(torch.tensor([[[255, 255, 0, OUTSIDE]]], dtype=torch.uint8))
    method = build_method("self_training", SMALL, SMALL, threshold=0.9)
    term = method(SegOutput(student, {}, None), SegOutput(teacher, {}, None), labels)["self_training"]
    assert term.item() == pytest.approx(2 / 3 * math.log(K))
    term.backward()
    assert student.grad[0, 1, 0].tolist() == pytest.approx([(1 / K - 1) / 3, 0, (1 / K - 1) / 3, 0])


def test_a_threshold_that_no_probability_exceeds_is_refused():
    with pytest.raises(ValueError, match="threshold is 1.0; expected 0 <= threshold < 1"):
        build_method("self_training", SMALL, SMALL, threshold=1.0)
