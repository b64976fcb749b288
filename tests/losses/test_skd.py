"""SKD: values by hand, and what must hold of any method."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from losses.labels import Labels
from losses.skd import SKD, pairwise_distance, pool_nodes, valid_nodes
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids, random_output, spec, zero_labels

TERMS = ["skd_pixel", "skd_pairwise"]
TINY = spec("cnn", (2, 2, 2, 2), (1, 1, 1, 1), Tap(2, 1), num_classes=2)
E1, E2 = (1.0, 0.0), (0.0, 1.0)


def square(*vectors):
    """Four feature vectors -> 1 2 2 2."""
    return torch.tensor(vectors).T.reshape(1, 2, 2, 2)


def output(logits, head):
    return SegOutput(logits, {"head": head}, None)


def small_case(B=2, requires_grad=False, **options):
    torch.manual_seed(0)
    method = SKD(SMALL, LARGE, **options)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_ids(B, 6, 8)


def part(x, index):
    return output(x.logits[index], x.taps["head"][index])


def leaves(x):
    return [x.logits, x.taps["head"]]


def test_pooling_by_hand():
    x = torch.arange(16.0).view(1, 1, 4, 4) - 20  # void is no 0 that would win
    x[0, 0, 0, 0] = 99
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = valid[0, 2:, 2:] = False
    assert pool_nodes(x, valid, 2)[..., 0].tolist() == [[-15, -13, -7, 0]]
    assert valid_nodes(valid, 2).tolist() == [[True, True, True, False]]
    assert pool_nodes(x, valid, 2).shape == (1, 4, 1)
    assert pool_nodes(x[:, :, :3, :3], valid[:, :3, :3], 2).shape == (1, 4, 1)  # odd sides: regions overlap


def test_pairwise_term_by_hand():
    method = SKD(TINY, TINY, pixel=0.0)
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2)
    student, teacher = output(logits, square(E1, E1, E2, E2)), output(logits, square(E1, (2.0, 0.0), E1, E1))
    # Of the 16 ordered pairs the student has 8 at right angles, which the teacher has parallel.
    assert method(student, teacher, Labels(labels))["skd_pairwise"].item() == pytest.approx(0.5)
    assert method.counts(Labels(labels))["skd_pairwise"].item() == 16
    labels[0, 1, 1] = 255
    assert method(student, teacher, Labels(labels))["skd_pairwise"].item() == pytest.approx(4 / 9)
    assert method.counts(Labels(labels))["skd_pairwise"].item() == 9


def test_pixel_term_by_hand():
    method = SKD(TINY, TINY, pairwise=0.0, temperature=2.0)
    teacher = output(torch.zeros(1, 2, 2, 2), square(E1, E1, E1, E1))
    student = output(torch.zeros(1, 2, 2, 2), teacher.taps["head"])
    teacher.logits[0, 0, 0, 0] = 2 * math.log(3)
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    labels[0, 1, 1] = 255
    # T^2 KL((3/4, 1/4) || (1/2, 1/2)) in one of three cells.
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 3
    assert method(student, teacher, Labels(labels))["skd_pixel"].item() == pytest.approx(expected)


def test_gradient_in_double_precision():
    method, student, teacher, labels = small_case(B=1)
    teacher = output(*(x.double() for x in leaves(teacher)))
    inputs = [x.double().requires_grad_() for x in leaves(student)]
    assert gradcheck(lambda *x: tuple(method(output(*x), teacher, Labels(labels)).values()), inputs)


def test_a_student_that_equals_its_teacher_is_at_the_minimum():
    method, _, teacher, labels = small_case()
    student = [x.clone().requires_grad_() for x in leaves(teacher)]
    terms = method(output(*student), teacher, Labels(labels))
    assert {name: term.item() for name, term in terms.items()} == dict.fromkeys(TERMS, 0.0)
    sum(terms.values()).backward()
    assert all(x.grad.abs().max() < 1e-7 for x in student)


def test_a_region_that_is_void_on_either_grid_is_left_out():
    coarse = spec("transformer", (2, 2, 2, 2), (2, 2, 2, 2), Tap(2, 2), num_classes=2)
    method = SKD(TINY, coarse, pixel=0.0)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 1, 1] = 255  # the pixel of the coarse grid's first cell; the fine grid has three more in that region
    assert method.counts(Labels(labels))["skd_pairwise"].item() == 9
    assert method.counts(zero_labels(1, 4, 4))["skd_pairwise"].item() == 16
    outputs = [random_output(network, 1, 4, 4) for network in (TINY, coarse)]
    before = method(*outputs, Labels(labels))
    outputs[0].taps["head"][..., :2, :2], outputs[1].taps["head"][..., :1, :1] = torch.nan, torch.inf
    assert method(*outputs, Labels(labels)) == before


def test_shifts_of_logits_lengths_and_names_of_classes_do_not_matter():
    method, student, teacher, labels = small_case()
    before, order = method(student, teacher, Labels(labels)), torch.tensor([2, 0, 1])
    student, teacher = (
        output(x.logits[:, order] + torch.randn(2, 1, 6, 8), factor * x.taps["head"])
        for x, factor in ((student, 7.0), (teacher, 0.1))
    )
    torch.testing.assert_close(method(student, teacher, Labels(labels)), before)


def test_a_turn_of_the_feature_space_does_not_matter_once_pooled():
    torch.manual_seed(0)
    student, teacher, valid = torch.randn(2, 4, 5), torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    turn, _ = torch.linalg.qr(torch.randn(5, 5))
    torch.testing.assert_close(
        pairwise_distance(student @ turn, teacher, valid), pairwise_distance(student, teacher, valid)
    )


def test_doubling_the_resolution_does_not_matter():
    method, student, teacher, labels = small_case()

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    twice = method(*(output(*map(double, leaves(x))) for x in (student, teacher)), Labels(double(labels)))
    torch.testing.assert_close(twice, method(student, teacher, Labels(labels)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel": -1.0}, "none may be negative"),
        ({"pixel": 0.0, "pairwise": 0.0}, "one at least must be positive"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"nodes": 1}, "nodes 1"),
        ({"pairs": [("haed", "head")]}, "teacher tap in pairs 'haed'; did you mean 'head'"),
        ({"pairs": [("head", "head")] * 2}, "different"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SKD(SMALL, LARGE, **options)


def released_pairwise(student, teacher, k):
    """As the releases describe it: k x k max-pooling whose last row and column hold what is left over."""
    sims = []
    for x in (student, teacher):
        nodes = F.normalize(F.max_pool2d(x, k, k, ceil_mode=True).flatten(2), dim=1)
        sims.append(nodes.transpose(1, 2) @ nodes)
    return (sims[0] - sims[1]).square().mean()


@pytest.mark.parametrize(
    ("side", "k", "nodes", "ratio"), [(64, 32, 2, 1), (64, 2, 32, 1), (65, 32, 2, 0), (65, 2, 33, 0.19)]
)
def test_against_the_releases_even_sides_agree_and_odd_ones_do_not(side, k, nodes, ratio):
    """The ratios of the docstring: 2 x 2 regions (SKD's release) and cells (CIRKD's)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, channels, side, side, generator=generator) for channels in (16, 32))
    valid = torch.ones(2, side, side, dtype=torch.bool)
    S, T = (pool_nodes(x, valid, nodes) for x in (student, teacher))
    ours = pairwise_distance(S, T, valid_nodes(valid, nodes))
    assert ours / released_pairwise(student, teacher, k) == pytest.approx(ratio, abs=1e-4 if ratio == 1 else 1e-2)


def test_several_pairs_share_the_weight_and_terms_of_weight_zero_are_not_built():
    pairs = [("stage3", "stage3"), ("stage4", "head")]
    method = SKD(SMALL, LARGE, pixel=0.0, pairwise=3.0, pairs=pairs)
    assert method.weights == {"skd_pairwise/stage3-stage3": 1.5, "skd_pairwise/stage4-head": 1.5}
    labels = random_ids(2, 6, 8)
    outputs = random_output(SMALL, 2, 6, 8), random_output(LARGE, 2, 6, 8)
    assert list(method(*outputs, Labels(labels))) == list(method.weights) == list(method.counts(Labels(labels)))
    assert SKD(SMALL, LARGE, pairwise=0.0).weights == {"skd_pixel": 10.0}
