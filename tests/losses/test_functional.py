import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical
from torch.distributions import kl_divergence as oracle_kl

from losses import functional as LF
from losses.labels import Grid


def everywhere(*shape):
    return torch.ones(shape, dtype=torch.bool)


# Labels on a coarser grid


def test_masked_mean_of_nothing_is_zero_with_zero_gradient_even_beside_infinity():
    values = torch.tensor([1.0, 5.0, math.inf], requires_grad=True)
    mean = LF.masked_mean(values, torch.tensor([True, True, False]))
    assert mean.item() == 3.0
    nothing = LF.masked_mean(values, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_void_is_filled_without_a_gradient_and_maps_stay_as_they_lie(layout):
    x = torch.tensor([[[[1.0, math.nan]], [[2.0, math.inf]]]]).expand(3, 2, 1, 2).contiguous(memory_format=layout)
    x.requires_grad_()
    filled = LF.fill_void(x, torch.tensor([[[True, False]]]).expand(3, 1, 2), -5.0)
    assert filled[0].tolist() == [[[1.0, -5.0]], [[2.0, -5.0]]]
    means = LF.channel_mean(filled.square())
    assert means.tolist() == 3 * [[[2.5, 25.0]]]
    (gradient,) = torch.autograd.grad(means.sum(), x)
    assert gradient[2].tolist() == [[[1.0, 0.0]], [[2.0, 0.0]]]
    assert filled.stride() == x.stride()
    if layout == torch.channels_last:
        assert gradient.stride() == x.stride()


# Cross-entropy


def test_cross_entropy_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])  # 1 2 1 2: p = (1/2, 1/2), (3/4, 1/4)
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    torch.testing.assert_close(LF.cross_entropy(logits, Grid(labels)).item(), (math.log(2) + math.log(4)) / 2)
    labels = torch.tensor([[[255, 1]]], dtype=torch.uint8)
    torch.testing.assert_close(LF.cross_entropy(logits, Grid(labels)).item(), math.log(4))
    labels = torch.tensor([[[0, 254]]], dtype=torch.uint8)
    torch.testing.assert_close(LF.cross_entropy(logits, Grid(labels)).item(), math.log(2))


def test_cross_entropy_upsamples_logits_and_equals_torch():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 13, 17), dtype=torch.uint8)
    labels[0, :6] = 255
    weights = torch.tensor([0.1, 2.0, 0.7])
    upsampled = F.interpolate(logits, (13, 17), mode="bilinear", align_corners=False)
    for weight in (None, weights):
        expected = F.cross_entropy(upsampled, labels.long(), weight, ignore_index=255)
        torch.testing.assert_close(LF.cross_entropy(logits, Grid(labels), weight), expected)


def test_cross_entropy_with_small_class_weights_is_still_a_weighted_mean():
    logits, labels = torch.randn(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)
    heavy, light = (LF.cross_entropy(logits, Grid(labels), torch.full((2,), w)) for w in (1.0, 0.01))
    torch.testing.assert_close(light, heavy)


def test_cross_entropy_refuses_wrong_number_of_class_weights():
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        LF.cross_entropy(torch.zeros(1, 3, 2, 2), Grid(torch.zeros(1, 2, 2).byte()), torch.ones(2))


# KL


def test_kl_by_hand_on_a_2x2_grid():
    teacher = torch.zeros(1, 2, 2, 2)
    teacher[0, 0] = torch.tensor([[math.log(3), 0.0], [0.0, 50.0]])  # p_t: (3/4, 1/4), even, even, void
    valid = torch.tensor([[[True, True], [True, False]]])
    one_cell = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = LF.kl_divergence(torch.zeros(1, 2, 2, 2), teacher, valid)
    torch.testing.assert_close(loss.item(), one_cell / 3)
    # Twice the logits at twice the temperature: the same distributions, T^2 = 4.
    loss = LF.kl_divergence(torch.zeros(1, 2, 2, 2), 2 * teacher, valid, temperature=2.0)
    torch.testing.assert_close(loss.item(), 4 * one_cell / 3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_equals_torch_distributions_and_runs_over_classes(temperature):
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 3, 4), 3 * torch.randn(2, 5, 3, 4)  # asymmetric: K 5, h 3, w 4
    p, q = (Categorical(logits=(z / temperature).permute(0, 2, 3, 1)) for z in (teacher, student))
    expected = temperature**2 * oracle_kl(p, q)
    valid = torch.rand(2, 3, 4) > 0.3
    loss = LF.kl_divergence(student, teacher, valid, temperature)
    torch.testing.assert_close(loss, expected[valid].mean())


def test_kl_keeps_non_finite_void_logits_out_of_value_and_gradient():
    student, teacher, valid = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2), everywhere(1, 2, 2)
    valid[0, 0, 0] = False
    expected = LF.kl_divergence(student, teacher, valid)
    student[0, :, 0, 0], teacher[0, 0, 0, 0] = math.inf, math.nan
    student.requires_grad_()
    loss = LF.kl_divergence(student, teacher, valid)
    loss.backward()
    assert torch.equal(loss, expected)
    assert student.grad.isfinite().all()
    assert (student.grad[0, :, 0, 0] == 0).all()


# Context


def test_self_attention_context_equals_its_formula():
    torch.manual_seed(0)
    x, valid = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5) > 0.3
    context = LF.self_attention_context(x, valid, temperature=0.5)
    for image, cells, found in zip(x.flatten(2), valid.flatten(1), context.flatten(2), strict=True):
        centred = image - image[:, cells].mean(1, keepdim=True)
        cosine = torch.nn.functional.cosine_similarity(centred[:, :, None], centred[:, None, :], dim=0)
        attention = torch.softmax(cosine[:, cells] / 0.5, dim=1)  # rows: queries
        torch.testing.assert_close(found, image[:, cells] @ attention.T)


@pytest.mark.parametrize("size", [(6, 8), (45, 60)], ids=["a crop's stage 3", "360x480 at stride 8"])
def test_self_attention_context_keeps_the_map(size):
    torch.manual_seed(0)
    centre = 20 * torch.rand(1, 64, 1, 1)  # features are mostly far from 0: unlike random noise around it
    smooth = LF.resize(torch.randn(1, 64, 3, 4), size)
    x = centre + smooth + 0.1 * torch.randn(1, 64, *size)
    context = LF.self_attention_context(x, everywhere(1, *size))
    kept = context.var((2, 3)).sum() / x.var((2, 3)).sum()
    assert 0.3 < kept <= 1


def test_self_attention_context_scales_with_the_map_and_moves_with_it():
    torch.manual_seed(0)
    x, valid = torch.randn(2, 8, 3, 4), everywhere(2, 3, 4)
    context = LF.self_attention_context(x, valid)
    torch.testing.assert_close(LF.self_attention_context(100 * x, valid), 100 * context)
    torch.testing.assert_close(LF.self_attention_context(x + 5, valid), context + 5)


def test_self_attention_context_of_one_cell_a_flat_map_and_no_valid_cell():
    for x in (torch.randn(2, 3, 1, 1), torch.full((2, 3, 2, 2), 7.0)):
        x.requires_grad_()
        context = LF.self_attention_context(x, everywhere(2, *x.shape[2:]))
        torch.testing.assert_close(context, x)
        context.square().sum().backward()
        assert x.grad.isfinite().all()
    assert LF.self_attention_context(torch.zeros(1, 3, 2, 2), ~everywhere(1, 2, 2)).equal(torch.zeros(1, 3, 2, 2))


def test_self_attention_context_in_half_precision():
    torch.manual_seed(0)
    x, valid = torch.randn(1, 8, 3, 3), everywhere(1, 3, 3)
    expected = LF.self_attention_context(x, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(LF.self_attention_context(x, valid).float(), expected, rtol=0.02, atol=0.03)
    half = LF.self_attention_context((1e4 * x).half(), valid)  # squares are far beyond float16's 65504
    torch.testing.assert_close(half.float() / 1e4, expected, rtol=0.01, atol=0.01)


# Warp


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (23, 30), (45, 60), (64, 64), (33, 127), (96, 250)])
def test_zero_offsets_are_the_exact_identity(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    assert torch.equal(LF.warp(x, torch.zeros(2, 2, *size)), x)


def test_offsets_are_cells_columns_first_and_the_edge_goes_on():
    x = torch.tensor([[[[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]]])

    def shifted(dx, dy):
        offsets = torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
        return LF.warp(x, offsets)[0, 0]

    torch.testing.assert_close(shifted(1.0, 0.0), torch.tensor([[1.0, 2.0, 2.0], [11.0, 12.0, 12.0]]))
    torch.testing.assert_close(shifted(0.0, -1.0), torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]))
    torch.testing.assert_close(shifted(0.5, 0.5), torch.tensor([[5.5, 6.5, 7.0], [10.5, 11.5, 12.0]]))


def test_warp_gives_the_map_the_gradient_of_sampling():
    x = torch.zeros(1, 1, 1, 3, requires_grad=True)
    offsets = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    LF.warp(x, offsets).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[[[0.0, 1.0, 2.0]]]]))  # cell 0 is read by none, cell 2 by two


# Derivatives


def test_gradients_in_float64():
    torch.manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    labels = torch.tensor([[[0, 1, 2], [255, 1, 0]]], dtype=torch.uint8)
    teacher = randn(1, 3, 2, 3).detach()
    valid = labels != 255
    offsets = (0.2 + 0.3 * torch.rand(1, 2, 2, 3, dtype=torch.float64)).requires_grad_()  # off the kinks at whole cells
    assert torch.autograd.gradcheck(lambda z: LF.cross_entropy(z, Grid(labels)), randn(1, 3, 1, 2))
    assert torch.autograd.gradcheck(lambda z: LF.kl_divergence(z, teacher, valid, 2.0), randn(1, 3, 2, 3))
    assert torch.autograd.gradcheck(LF.self_attention_context, (randn(1, 2, 2, 3), valid))
    assert torch.autograd.gradcheck(LF.warp, (randn(1, 2, 2, 3), offsets))
