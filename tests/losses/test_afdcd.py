"""Af-DCD: values by hand, and the contrast against a loop. What holds of every feature method is in test_fitnet.py."""

import math

import pytest
import torch

from losses.afdcd import AfDCD, omni_contrast, patches, pool_maxima
from losses.functional import kl_divergence
from losses.labels import Labels
from tests.losses.networks import LARGE, SMALL, random_ids, random_output

BRIEF = {"groups": 2, "patch": 2, "pool": 2}


def small_case(**options):
    torch.manual_seed(0)
    outputs = (random_output(network, 2, 6, 8) for network in (SMALL, LARGE))
    return AfDCD(SMALL, LARGE, pair=("stage1", "stage1"), **BRIEF | options), *outputs, random_ids(2, 6, 8)


def cells(*vectors):
    """Feature vectors -> 1 C 1 w."""
    return torch.tensor(vectors).T[None, :, None]


def test_contrast_by_hand():
    # One cell, groups of one channel: s = 1 | 4 and t = 2 | 7. Distances 1 and 6, 3 and 2.
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    loss = omni_contrast(cells((1.0, 4.0)), cells((2.0, 7.0)), valid, side=1, groups=2, tau=2.0)
    expected = math.log(1 + math.exp((1 - 6) / 2)) + math.log(1 + math.exp((3 - 2) / 2))
    assert loss.item() == pytest.approx(expected)


def test_contrast_with_the_other_cells_of_a_patch_by_hand():
    s, t = cells((1.0, 4.0), (0.0, 0.0), (9.0, 9.0)), cells((2.0, 7.0), (3.0, 5.0), (1.0, 1.0))
    valid = torch.tensor([[[True, True, False]]])
    # Patches of 2 x 2 on a grid of 1 x 3: the first two cells, and a void one. 1 is against 7 and 5, 4 against 2
    # and 3; the first 0 (at 3) against 7 and 5, the second (at 5) against 2 and 3. Never against its own group.
    terms = [(1, 6, 4), (3, 2, 1), (3, 7, 5), (5, 2, 3)]
    expected = sum(math.log(1 + sum(math.exp(own - other) for other in others)) for own, *others in terms) / 2
    assert omni_contrast(s, t, valid, side=2, groups=2, tau=1.0).item() == pytest.approx(expected)


def test_contrast_is_that_of_a_loop():
    torch.manual_seed(0)
    s, t, valid = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 3, 5), torch.rand(2, 3, 5) < 0.7
    side, groups, tau, total = 2, 3, 0.5, 0.0
    for b, i, j in valid.nonzero().tolist():
        patch = [
            (k, q)
            for k in range(i - i % side, min(i - i % side + side, 3))
            for q in range(j - j % side, min(j - j % side + side, 5))
            if valid[b, k, q]
        ]
        for m in range(groups):
            anchor, own = (x[b, 2 * m : 2 * m + 2, i, j] for x in (s, t))
            others = [t[b, 2 * g : 2 * g + 2, k, q] for k, q in patch for g in range(groups) if g != m]
            scores = torch.stack([-(anchor - other).abs().sum() / tau for other in [own, *others]])
            total -= scores.log_softmax(0)[0]
    torch.testing.assert_close(omni_contrast(s, t, valid, side, groups, tau), total / valid.sum())


def test_contrast_is_least_where_the_student_is_the_teacher():
    torch.manual_seed(0)
    t, valid = torch.randn(1, 8, 4, 4), torch.rand(1, 4, 4) < 0.8
    least = omni_contrast(t, t, valid, 2, 4, 1.0)
    assert least > 0
    for spread in (0.01, 0.1, 1.0, 10.0):
        assert omni_contrast(t + spread * torch.randn(1, 8, 4, 4), t, valid, 2, 4, 1.0) > least


def test_patches_and_maxima_by_hand():
    grid = torch.arange(6.0).view(1, 1, 2, 3)
    assert patches(grid, 2)[..., 0].tolist() == [[0, 1, 3, 4], [2, 0, 5, 0]]
    valid = torch.tensor([[[True, True, False], [True, False, False]]])
    assert pool_maxima(-grid, valid, 2).tolist() == [[[[0, 0]]]]
    assert pool_maxima(grid - 9, valid, 2).tolist() == [[[[-6, 0]]]]


def test_the_terms():
    method, student, teacher, labels = small_case(temperature=2.0, mask_ratio=0.0)
    terms, valid = method(student, teacher, Labels(labels)), labels != 255
    guess, target = method.generation(student.taps["stage1"], valid), teacher.taps["stage1"]
    inside = valid[:, None].expand_as(guess)
    kd = kl_divergence(student.logits, teacher.logits, valid, 2.0)
    pooled = (pool_maxima(x, valid, 2) for x in (guess, target))
    pooled_valid = valid.unflatten(1, (3, 2)).unflatten(3, (4, 2)).any(4).any(2)
    expected = {
        "afdcd_kd": kd,
        "afdcd_feature": (guess - target)[inside].square().mean(),
        "afdcd_contrast": omni_contrast(*pooled, pooled_valid, 2, 2, 0.07),
    }
    torch.testing.assert_close(terms, expected)
    assert method.weights == {"afdcd_kd": 1.0, "afdcd_feature": 33.5, "afdcd_contrast": 0.005}
    counts = {"afdcd_kd": valid.sum(), "afdcd_feature": valid.sum(), "afdcd_contrast": pooled_valid.sum()}
    assert method.counts(Labels(labels)) == counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kd": -1.0}, "none may be negative"),
        ({"kd": 0.0, "feature": 0.0, "contrast": 0.0}, "one at least must be positive"),
        ({"tau": 0.0}, "tau 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"groups": 3}, "groups is 3; .* divide the teacher's 8 channels"),
        ({"groups": 1}, "groups is 1"),
        ({"patch": 0}, "patch is 0"),
        ({"pool": 0}, "pool 0"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_case(**options)


@pytest.mark.parametrize("kept", ["kd", "feature", "contrast"])
def test_terms_of_weight_zero_are_not_built(kept):
    weights = dict.fromkeys(("kd", "feature", "contrast"), 0.0) | {kept: 2.0}
    method, student, teacher, labels = small_case(**weights)
    assert list(method(student, teacher, Labels(labels))) == list(method.counts(Labels(labels))) == [f"afdcd_{kept}"]
    assert method.weights == {f"afdcd_{kept}": 2.0}
    assert bool(list(method.parameters())) == (kept != "kd")
