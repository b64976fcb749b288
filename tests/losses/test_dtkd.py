"""DTKD by hand. What holds of every method of logits is in ``test_kd.py``."""

import math

import torch

from losses.dtkd import DTKD, dynamic_divergence, dynamic_temperatures
from models.base import SegOutput
from tests.losses.networks import LARGE, SMALL, random_labels


def cell(*logits):
    return torch.tensor(logits).view(1, -1, 1, 1)


def test_dynamic_by_hand():
    """Largest logits 2 and 4 at T = 1.5: T_s = 1, T_t = 2, and p_t is of (-1, 2, -1), p_s of (2, -1, -1)."""
    student, teacher, cells = cell(2.0, -1.0, -1.0), cell(-2.0, 4.0, -2.0), torch.zeros(1, 1, 1)
    temperatures = dynamic_temperatures(student, teacher, 1.5)
    torch.testing.assert_close(temperatures, (cell(1.0), cell(2.0)))
    high, low = math.exp(2), math.exp(-1)
    expected = 1 * 2 * 3 * (high - low) / (high + 2 * low)
    torch.testing.assert_close(dynamic_divergence(student, teacher, cells, 1.5).item(), expected)


def test_dynamic_is_a_mean_over_valid_cells():
    student, teacher = cell(2.0, -1.0, -1.0), cell(-2.0, 4.0, -2.0)
    one = dynamic_divergence(student, teacher, torch.zeros(1, 1, 1), 1.5)
    cells = torch.tensor([[[0, 1, 255, 255]]])
    student = torch.cat([student, teacher, torch.zeros(1, 3, 1, 2)], dim=3)
    teacher = torch.cat([teacher, teacher, torch.zeros(1, 3, 1, 2)], dim=3)
    torch.testing.assert_close(dynamic_divergence(student, teacher, cells, 1.5), one / 2)


def test_temperatures_have_the_given_mean_and_make_both_equally_sharp():
    torch.manual_seed(0)
    student, teacher = (scale * torch.randn(2, 5, 3, 4) for scale in (0.3, 8.0))
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    T_s, T_t = dynamic_temperatures(student, teacher, 4.0)
    torch.testing.assert_close((T_s + T_t) / 2, torch.full_like(T_s, 4.0))
    torch.testing.assert_close((student / T_s).amax(1), (teacher / T_t).amax(1))


def test_a_multiple_of_the_teacher_loses_by_the_fixed_temperature_alone():
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 6, 8)
    terms = DTKD(SMALL, LARGE)(
        SegOutput(0.3 * teacher + 7, {}, None), SegOutput(teacher, {}, None), random_labels(2, 6, 8)
    )
    torch.testing.assert_close(terms["dtkd_dynamic"].item(), 0.0, atol=1e-5, rtol=0)
    assert terms["dtkd_kd"] > 0.1
