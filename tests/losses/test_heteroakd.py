"""HeteroAKD: values by hand, and what must hold of any method."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from losses.heteroakd import HeteroAKD, HybridAlignment, mix_knowledge, weighted_cross_entropy
from losses.labels import Labels
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, random_ids, random_output

TERMS = ["heteroakd_feature", "heteroakd_anchor", "heteroakd_logit"]
LOG3 = math.log(3)


def cells(*values):
    """For each cell its K values -> 1 K 1 n."""
    return torch.tensor(values).T[None, :, None]


def plain_alignment(K, temperature=1.0):
    """K channels, which are the logits themselves."""
    align = HybridAlignment(Tap(K, 1), Tap(K, 1), K, temperature)
    align.standardize = nn.ModuleList([nn.Identity(), nn.Identity()])
    for classify in align.classify:
        nn.init.dirac_(classify.weight)
        nn.init.zeros_(classify.bias)
    return align


def small_case(B=2, requires_grad=False, **options):
    torch.manual_seed(0)
    method = HeteroAKD(SMALL, LARGE, **options)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_ids(B, 6, 8)


def output(logits, stage4):
    return SegOutput(logits, {"stage4": stage4}, None)


def part(x, index):
    return output(x.logits[index], x.taps["stage4"][index])


def leaves(x):
    return [x.logits, x.taps["stage4"]]


def void_on(labels, x):
    """Where the cells of a map are void, in its shape; cells of two pixels have their centre in the second."""
    step = labels.shape[-1] // x.shape[-1]
    return (labels[:, step // 2 :: step, step // 2 :: step] == 255)[:, None].expand_as(x)


def test_mixing_by_hand():
    # The student says 1/2 of each class; the teacher is right of the first (3/4) and wrong of the second (3/4).
    Z_h, W = mix_knowledge(cells((0.0, 0.0)), cells((LOG3, LOG3)), cells((1.0, 0.0)))
    H_s, right, wrong = math.log(2), math.log(4 / 3), math.log(4)
    first, second = LOG3 * H_s / (H_s + right), LOG3 * H_s / (H_s + wrong)
    assert Z_h.flatten().tolist() == pytest.approx([first, second])
    # The target errs less than the student on the first class, by H_s - log(1 + exp(-Z_h)), and more on the second.
    gain = H_s - math.log(1 + math.exp(-first))
    assert W.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-gain)), 1 / (1 + math.exp(gain))])


def test_the_mix_trusts_whoever_is_right():
    truth, y = cells((200.0, -200.0)), cells((1.0, 0.0))
    assert torch.equal(mix_knowledge(-truth, truth, y)[0], truth)
    assert torch.equal(mix_knowledge(truth, -truth, y)[0], truth)
    assert torch.equal(mix_knowledge(truth, 2 * truth, y)[0], truth)  # neither errs at all: 0 / 0


def test_feature_and_anchor_by_hand():
    align = plain_alignment(2, temperature=2.0)
    labels = torch.zeros(1, 1, 3, dtype=torch.uint8)
    labels[0, 0, 2] = 255
    # Where both sides agree the target is theirs, W is softmax of their errors.
    s = cells((0.0, 0.0), (LOG3, -LOG3), (math.nan, math.inf))
    loss, anchor = align(s, s, Labels(labels))
    first = math.log(2) / 2  # W (1/2, 1/2), p (1/2, 1/2)
    p = math.sqrt(3) ** 2 / (math.sqrt(3) ** 2 + 1)  # at T = 2 the logits are +- log(3) / 2: p = (3/4, 1/4)
    second = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / 2  # H is log 4/3 of both classes: W (1/2, 1/2)
    assert loss.item() == pytest.approx(4 * (first + second) / 2)
    assert anchor.item() == pytest.approx(2 * (math.log(2) + math.log(4 / 3)) / 2)


def test_loss_is_least_at_the_weighted_target():
    torch.manual_seed(0)
    Z_s, Z_t, valid = torch.randn(1, 4, 3, 5).double(), torch.randn(1, 4, 3, 5).double(), torch.ones(1, 3, 5).bool()
    y = nn.functional.one_hot(torch.randint(4, (1, 3, 5)), 4).permute(0, 3, 1, 2).double()
    Z_h, W = mix_knowledge(Z_s, Z_t, y)
    assert ((Z_h - Z_s) * (Z_h - Z_t) <= 0).all()  # between the two
    torch.testing.assert_close(W.sum(1), torch.ones(1, 3, 5).double())
    best = (3 * (W * (Z_h / 3).softmax(1)).log()).requires_grad_()
    loss = weighted_cross_entropy(best, Z_h, W, valid, 3.0)
    (grad,) = torch.autograd.grad(loss, best)
    assert grad.abs().max() < 1e-15
    assert loss < weighted_cross_entropy(best + 0.1 * Z_s, Z_h, W, valid, 3.0)


def test_logits_that_equal_the_teachers_are_at_the_minimum():
    method, _, teacher, labels = small_case(feature=0.0)
    logits = teacher.logits.clone().requires_grad_()
    loss = method(output(logits, None), teacher, Labels(labels))["heteroakd_logit"]
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() < 1e-7


def test_gradient_in_double_precision():
    # The target is a constant of the loss, so it is held fixed under the finite differences too.
    torch.manual_seed(0)
    Z_s, Z_t, valid = torch.randn(1, 3, 2, 3).double(), torch.randn(1, 3, 2, 3).double(), torch.rand(1, 2, 3) < 0.7
    y = nn.functional.one_hot(torch.randint(3, (1, 2, 3)), 3).permute(0, 3, 1, 2).double()
    Z_h, W = mix_knowledge(Z_s, Z_t, y)
    assert gradcheck(lambda z: weighted_cross_entropy(z, Z_h, W, valid, 2.0), Z_s.clone().requires_grad_())
    align, x = plain_alignment(3).double(), Z_s.clone().requires_grad_()
    labels = y.argmax(1).masked_fill(~valid, 255).to(torch.uint8)
    loss, _ = align(x, Z_t, Labels(labels))
    fixed = weighted_cross_entropy(x, Z_h, W, valid, 1.0)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(fixed, x))


def test_distillation_never_reaches_the_teachers_exit_nor_the_anchor_the_student():
    method, student, teacher, labels = small_case(requires_grad=True)
    terms = method(student, teacher, Labels(labels))
    exits = method.alignments["heteroakd_feature"].classify

    def reached(term, *tensors):
        grads = torch.autograd.grad(terms[term], tensors, retain_graph=True, allow_unused=True)
        return [grad is not None and bool(grad.any()) for grad in grads]

    both = student.taps["stage4"], exits[0].weight, exits[1].weight
    assert reached("heteroakd_feature", *both) == [True, True, False]
    assert reached("heteroakd_anchor", *both) == [False, True, True]


def test_lengths_of_features_shifts_of_logits_and_names_of_classes_do_not_matter():
    method, student, teacher, labels = small_case()
    before, order = method(student, teacher, Labels(labels)), torch.tensor([2, 0, 1])
    labels = torch.cat([order.argsort(), torch.full((253,), 255)])[labels.long()].byte()
    student, teacher = (
        output(x.logits[:, order] + torch.randn(2, 1, 6, 8), 7 * x.taps["stage4"]) for x in (student, teacher)
    )
    with torch.no_grad():
        for classify in method.alignments["heteroakd_feature"].classify:
            classify.weight.copy_(classify.weight[order])
            classify.bias.copy_(classify.bias[order])
    torch.testing.assert_close(method(student, teacher, Labels(labels)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": -1.0}, "none may be negative"),
        ({"feature": 0.0, "logit": 0.0}, "one at least must be positive"),
        ({"anchor": 0.0}, "anchor 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"pairs": [("stag4", "stage4")]}, "teacher tap in pairs 'stag4'; did you mean 'stage4'"),
        ({"pairs": [("stage4", "stage4")] * 2}, "different"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeteroAKD(SMALL, LARGE, **options)


def test_several_pairs_share_the_weights_and_terms_of_weight_zero_are_not_built():
    method = HeteroAKD(SMALL, LARGE, feature=3.0, logit=0.0, pairs=[("stage3", "stage3"), ("stage4", "head")])
    assert method.weights == {
        "heteroakd_feature/stage3-stage3": 1.5,
        "heteroakd_anchor/stage3-stage3": 0.5,
        "heteroakd_feature/stage4-head": 1.5,
        "heteroakd_anchor/stage4-head": 0.5,
    }
    labels = random_ids(2, 6, 8)
    terms = method(random_output(SMALL, 2, 6, 8), random_output(LARGE, 2, 6, 8), Labels(labels))
    assert list(terms) == list(method.weights)
    assert set(method.counts(Labels(labels))) == set(terms)
    alone = HeteroAKD(SMALL, LARGE, feature=0.0)
    assert alone.weights == {"heteroakd_logit": 0.1}
    assert not list(alone.parameters())
