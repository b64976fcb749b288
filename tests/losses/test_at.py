"""AT: values by hand, and what it does not depend on. What holds of every feature method is in test_fitnet.py."""

import pytest
import torch

from losses.at import AT, attention
from losses.labels import Labels
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids, random_output, spec

TINY = spec("cnn", (2,) * 4, (1,) * 4, Tap(2, 1), num_classes=2)


def row(*cells):
    """Feature vectors -> an output of one image of one row."""
    features = torch.tensor(cells).T[None, :, None]
    return SegOutput(torch.zeros(1, 2, 1, len(cells)), {"head": features}, None)


def test_attention_by_hand():
    features = row((2.0, 2.0), (0.0, 0.0), (1.0, -5 / 3 * 3**0.5)).taps["head"]  # squares: 8, 0, 28 / 3
    expected = torch.tensor([8, 0, 28 / 3]) / (8**2 + (28 / 3) ** 2) ** 0.5
    torch.testing.assert_close(attention(features), expected.view(1, 1, 3))


def test_at_by_hand():
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    student, teacher = row((1.0, 2**0.5), (2.0, 0.0), (7.0, 7.0)), row((0.0, 1.0), (0.0, 0.0), (3.0, 0.0))
    # Squares 3 : 4 and 1 : 0, so (.6, .8) against (1, 0); void is in no norm.
    assert AT(TINY, TINY)(student, teacher, Labels(labels))["at"].item() == pytest.approx((0.16 + 0.64) / 2)
    assert AT(TINY, TINY).weights == {"at": 10000.0}


def small_case():
    torch.manual_seed(0)
    outputs = (random_output(network, 2, 6, 8) for network in (SMALL, LARGE))
    return AT(SMALL, LARGE), *outputs, random_ids(2, 6, 8)


def test_nothing_is_learnt_and_equal_maps_lose_nothing():
    method, _, teacher, labels = small_case()
    assert not list(method.parameters())
    assert method(teacher, teacher, Labels(labels))["at"].item() == 0


def test_lengths_signs_and_order_of_channels_do_not_matter():
    method, student, teacher, labels = small_case()
    features = -7 * student.taps["head"][:, [2, 0, 3, 1]]
    torch.testing.assert_close(
        method(student._replace(taps={"head": features}), teacher, Labels(labels)),
        method(student, teacher, Labels(labels)),
    )


def test_twice_the_resolution_is_a_quarter_of_the_loss():
    method, student, teacher, labels = small_case()

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    twice = (x._replace(taps={"head": double(x.taps["head"])}) for x in (student, teacher))
    torch.testing.assert_close(
        method(*twice, Labels(double(labels)))["at"], method(student, teacher, Labels(labels))["at"] / 4
    )
