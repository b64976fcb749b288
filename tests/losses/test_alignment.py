"""Each alignment against values worked out by hand, on 2x2 grids with known weights, and its refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses.alignment import FeatureAlignment, LogitAlignment, RelationAlignment, StageLogitAlignment
from losses.functional import self_attention_context
from losses.labels import Labels
from models.base import ModelSpec, Tap
from tests.losses.networks import zero_labels

ONE = Tap(1, 1)


def grid(*values):
    """Four values -> 1 1 2 2."""
    return torch.tensor(values).view(1, 1, 2, 2)


def labels(*values):
    return Labels(torch.tensor(values, dtype=torch.uint8).view(1, 2, 2))


def plain_feature_alignment(anchor_classes=2, context=None):
    """One channel; projector and refinements pass their input on, so each side is its standardised map."""
    align = FeatureAlignment(ONE, ONE, context, anchor_classes)
    with torch.no_grad():
        align.project.weight.fill_(1)
        for refine in (align.refine_student, align.refine_teacher):
            refine.enter.weight.fill_(1)
            refine.bottleneck[-1].weight.zero_()
    return align


# Standardised, (0, 0, 0, 4) is (-1, -1, -1, 3) / sqrt 3 and (3, 3, -3, -3) is (1, 1, -1, -1).


@pytest.mark.parametrize("anchor_classes", [2, None])
def test_feature_by_hand(anchor_classes):
    align = plain_feature_alignment(anchor_classes)
    loss, _ = align(grid(0.0, 0.0, 0.0, 4.0), grid(3.0, 3.0, -3.0, -3.0), labels(0, 1, 0, 1))
    correlation = (-1 - 1 + 1 - 3) / math.sqrt(3) / 4
    torch.testing.assert_close(loss.item(), 2 * (1 - correlation), rtol=1e-4, atol=0)


def test_feature_with_a_void_cell_by_hand():
    align = plain_feature_alignment()
    # The fourth cell enters as 0 on both sides: (0, 0, 3, 0) and (1, 1, -1, 0), and does not enter the mean.
    s, t = [(x - 0.75) / math.sqrt(27 / 16) for x in (0, 0, 3)], [(x - 0.25) / math.sqrt(11 / 16) for x in (1, 1, -1)]
    args = grid(0.0, 0.0, 3.0, 7.0), grid(1.0, 1.0, -1.0, 9.0), labels(0, 1, 0, 255)
    expected = sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 3
    torch.testing.assert_close(align(*args)[0].item(), expected, rtol=1e-4, atol=0)
    assert align.count(args[-1]).item() == 3


def test_feature_warps_the_teacher_side_by_its_offsets():
    align = plain_feature_alignment(anchor_classes=None)
    student, teacher = grid(0.0, 0.0, 0.0, -4.0), grid(1.0, -1.0, 1.0, -1.0)
    still, _ = align(student, teacher, labels(0, 0, 0, 0))
    with torch.no_grad():
        align.offsets.g[-1].bias.copy_(torch.tensor([1.0, 0.0]))  # every cell reads its right neighbour: all -1
    moved, _ = align(student, teacher, labels(0, 0, 0, 0))
    torch.testing.assert_close(still.item(), 2 * (1 - 1 / math.sqrt(3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(moved.item(), 2.0, rtol=1e-4, atol=0)  # mean (S + 1)^2 = var S + 1


def test_feature_anchor_by_hand():
    align = plain_feature_alignment()
    with torch.no_grad():
        align.classify.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
        align.classify.bias.zero_()
    teacher = grid(3.0, 3.0, -3.0, -3.0)  # class 0's logit: 1, 1, -1, -1; class 1's: 0
    _, anchor = align(grid(0.0, 0.0, 0.0, 4.0), teacher, labels(0, 1, 1, 1))
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    torch.testing.assert_close(anchor.item(), (3 * right + wrong) / 4, rtol=1e-4, atol=0)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_context_is_given_to_the_named_side_alone(side):
    torch.manual_seed(0)
    plain, attentive = plain_feature_alignment(), plain_feature_alignment(context=side)
    maps = {"student": torch.randn(1, 1, 2, 2), "teacher": torch.randn(1, 1, 2, 2)}
    before = attentive(maps["student"], maps["teacher"], labels(0, 1, 0, 1))[0]
    maps[side] = self_attention_context(maps[side], labels(0, 1, 0, 1).ids < 254)
    torch.testing.assert_close(before, plain(maps["student"], maps["teacher"], labels(0, 1, 0, 1))[0])


def test_feature_unrelated_sides_score_two_whatever_the_offsets():
    torch.manual_seed(0)
    align = FeatureAlignment(Tap(16, 1), Tap(24, 1), None, 3)
    torch.nn.init.normal_(align.offsets.g[-1].weight)  # strong smoothing by the warp must not lower the loss
    loss, _ = align(torch.randn(4, 16, 24, 24), torch.randn(4, 24, 24, 24), zero_labels(4, 24, 24))
    assert abs(loss.item() - 2) < 0.05


def test_a_finer_teacher_is_compared_on_the_students_grid():
    align = plain_feature_alignment()
    align.student, align.stride = Tap(1, 2), 2
    student, fine = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 4, 4)
    loss, anchor = align(student, fine, zero_labels(1, 4, 4))
    coarse = fine.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    align.student, align.teacher, align.stride = ONE, ONE, 1
    torch.testing.assert_close((loss, anchor), align(student, coarse, zero_labels(1, 2, 2)))


def test_a_finer_student_is_compared_on_the_teachers_grid():
    align = plain_feature_alignment()
    align.teacher, align.stride = Tap(1, 2), 2
    student = torch.arange(16.0).view(1, 1, 4, 4)  # means of 2x2 cells: 2.5 4.5 10.5 12.5
    cells = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 255, 255], [1, 1, 255, 255]]], dtype=torch.uint8)
    cells = Labels(cells)
    found, _ = align(student, grid(3.0, 3.0, -3.0, -3.0), cells)
    coarse, _ = plain_feature_alignment()(grid(2.5, 4.5, 10.5, 12.5), grid(3.0, 3.0, -3.0, -3.0), labels(0, 1, 1, 255))
    torch.testing.assert_close(found, coarse)
    assert align.count(cells).item() == 3


def test_logit_resizes_the_teacher_and_shrinks_labels():
    align = LogitAlignment(num_classes=2, stride=2, temperature=1.0)
    teacher = torch.zeros(1, 2, 4, 4)
    teacher[0, 0, :2, :2] = math.log(3)  # one cell of the 2x2 grid: p_t = (3/4, 1/4)
    y = zero_labels(1, 4, 4)
    y.ids[0, 3, 3] = 255  # the centre pixel of the last cell
    loss = align(torch.zeros(1, 2, 2, 2), teacher, y)
    torch.testing.assert_close(loss.item(), (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 3)
    assert align.count(y).item() == 3


def test_stage_logit_by_hand():
    spec = ModelSpec({"stage1": Tap(3, 1), "stage2": Tap(5, 2), "head": Tap(2, 1)}, 2, "cnn")
    align = StageLogitAlignment(spec, temperature=1.0)
    teacher = torch.zeros(1, 2, 2, 2)
    teacher[0, 0] = math.log(3)
    with torch.no_grad():
        for head, logit in zip(align.heads.values(), (0.0, math.log(3)), strict=True):
            head[-1].weight.zero_()
            head[-1].bias.copy_(torch.tensor([logit, 0.0]))
    taps = {"stage1": torch.randn(2, 3, 2, 2), "stage2": torch.randn(2, 5, 1, 1), "head": torch.randn(2, 2, 2, 2)}
    loss = align(taps, teacher.expand(2, 2, 2, 2), zero_labels(2, 2, 2))
    # The first stage's head says (1/2, 1/2) against (3/4, 1/4); the second's says the same as the teacher.
    torch.testing.assert_close(loss.item(), (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)


def plain_relation_alignment(anchor_classes):
    """Two channels, patches of one cell, identity maps: a cell (a, b) becomes the token (1, -1) if a > b, else its
    negative, and like tokens score 2 / sqrt 2, unlike ones -2 / sqrt 2."""
    align = RelationAlignment(Tap(2, 1), Tap(2, 1), 1, anchor_classes)
    with torch.no_grad():
        sides = [align.relate_teacher] + ([] if anchor_classes else [align.relate_student])
        for side in (align.relate_student, align.relate_teacher):
            side.embed.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
            side.embed.bias.zero_()
        for side in sides:
            for linear in (side.query, side.key):
                linear.weight.copy_(torch.eye(2))
                linear.bias.zero_()
    return align


LIKE = 1 / (1 + math.exp(-2 * math.sqrt(2)))  # share of a row that falls on tokens like it, two of four being so


def two_channels(signs):
    signs = torch.tensor(signs).view(2, 2)
    return 100 * torch.stack([signs, -signs])[None]


def test_relation_by_hand():
    align = plain_relation_alignment(anchor_classes=2)
    with torch.no_grad():
        align.classify.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        align.classify.bias.zero_()
    loss, anchor = align(torch.randn(1, 2, 2, 2), two_channels([1.0, 1.0, -1.0, -1.0]), labels(0, 0, 1, 0))
    like, unlike = LIKE / 2, (1 - LIKE) / 2  # P_t against the untrained student's 1/4
    torch.testing.assert_close(loss.item(), ((like - 0.25) ** 2 + (unlike - 0.25) ** 2) / 2, rtol=1e-4, atol=0)
    gap = 2 * (2 * LIKE - 1)  # P_t V_t is (1, -1) (2 LIKE - 1) on the first two tokens
    right, wrong = math.log(1 + math.exp(-gap)), math.log(1 + math.exp(gap))
    torch.testing.assert_close(anchor.item(), (3 * right + wrong) / 4, rtol=1e-4, atol=0)


def test_relation_between_two_maps_by_hand():
    align = plain_relation_alignment(anchor_classes=None)
    student, teacher = two_channels([1.0, 1.0, -1.0, -1.0]), two_channels([1.0, -1.0, 1.0, -1.0])
    loss, anchor = align(student, teacher, labels(0, 0, 0, 0))
    # In each row the sides agree on two tokens and swap like and unlike on the other two.
    torch.testing.assert_close(loss.item(), 2 * ((2 * LIKE - 1) / 2) ** 2 / 4, rtol=1e-4, atol=0)
    assert anchor is None
    assert align(student, student, labels(0, 0, 0, 0))[0].item() == 0


def test_void_tokens_are_neither_rows_nor_keys():
    align = plain_relation_alignment(anchor_classes=2)
    y = labels(0, 0, 1, 255)
    loss, _ = align(torch.randn(1, 2, 2, 2), two_channels([1.0, 1.0, -1.0, 1.0]), y)
    e = math.exp(2 * math.sqrt(2))  # like over unlike
    rows = [[e, e, 1], [e, e, 1], [1, 1, e]]
    squares = [(p / sum(row) - 1 / 3) ** 2 for row in rows for p in row]
    torch.testing.assert_close(loss.item(), sum(squares) / (3 * 4), rtol=1e-4, atol=0)  # 3 rows, 4 columns
    assert align.count(y).item() == 3


def test_padding_of_the_relation_grid_changes_nothing_but_the_column_count():
    torch.manual_seed(0)
    align = RelationAlignment(Tap(3, 1), Tap(3, 1), 2, None)
    student, teacher, y = torch.randn(1, 3, 3, 5), torch.randn(1, 3, 3, 5), zero_labels(1, 3, 5)
    wide_y = Labels(F.pad(y.ids, (0, 3, 0, 1), value=255))  # by hand to 4 x 8: a fourth, all-void column of tokens
    loss, wide = align(student, teacher, y)[0], align(*(F.pad(x, (0, 3, 0, 1)) for x in (student, teacher)), wide_y)[0]
    assert align.count(y).item() == align.count(wide_y).item() == 6
    torch.testing.assert_close(loss * 6, wide * 8)
