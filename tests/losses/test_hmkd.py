"""What must hold of the dual alignment for any pair: void, gradients, batches, precision, no collapse."""

import pytest
import torch

from losses.hmkd import HMKD
from losses.labels import Labels
from models.base import SegOutput
from tests.losses.networks import (
    LARGE,
    MIT_B0,
    MIT_B4,
    RESNET18,
    RESNET101,
    SMALL,
    random_ids,
    random_labels,
    random_output,
)

EVERY_TERM = {"feature": 1.0, "logit": 1.0, "relation": 1.0, "stage_logit": 1.0, "patch": 2}


def small_case(B=2, requires_grad=False, **options):
    torch.manual_seed(0)
    method = HMKD(SMALL, LARGE, **EVERY_TERM | options)
    # Wake what starts at zero, so that no path is closed by initialisation.
    for name, parameter in method.named_parameters():
        if not parameter.any() and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    outputs = [random_output(network, B, 6, 8, requires_grad) for network in (SMALL, LARGE)]
    return method, *outputs, random_ids(B, 6, 8)


def leaves(output):
    return [output.logits, *output.taps.values()]


@pytest.mark.parametrize(
    ("student", "teacher", "context"),
    [
        (RESNET18, MIT_B4, "student"),
        (MIT_B0, RESNET101, "teacher"),
        (RESNET18, RESNET101, None),
        (MIT_B0, MIT_B4, None),
    ],
    ids=["B4->R18", "R101->B0", "R101->R18", "B4->B0"],
)
def test_the_four_pairs_of_the_mission(student, teacher, context):
    torch.manual_seed(0)
    method = HMKD(student, teacher, relation=1.0, stage_logit=1.0)
    s, t = (random_output(network, 2, 40, 56, requires_grad=True) for network in (student, teacher))
    labels = random_ids(2, 40, 56, num_classes=19)
    terms = method(s, t, Labels(labels))
    assert method.alignments["feature"].context == context
    assert list(terms) == list(method.weights)
    assert terms.keys() == method.counts(Labels(labels)).keys()
    assert all(term.ndim == 0 and term.dtype == torch.float32 and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())  # nothing that DDP would wait for
    assert s.taps["stage3"].grad.abs().sum() > 0
    assert s.logits.grad.abs().sum() > 0


def test_two_classes_and_odd_sizes():
    student, teacher = (network._replace(num_classes=2) for network in (SMALL, LARGE))
    method = HMKD(student, teacher, **EVERY_TERM)
    outputs = (random_output(network, 3, 7, 5) for network in (student, teacher))
    assert all(term.isfinite() for term in method(*outputs, random_labels(3, 7, 5, num_classes=2)).values())


def test_a_batch_of_two_equal_halves_gives_the_mean():
    method, student, teacher, labels = small_case()
    once = method(student, teacher, Labels(labels))
    student, teacher = (
        SegOutput(x.logits.repeat(2, 1, 1, 1), {n: t.repeat(2, 1, 1, 1) for n, t in x.taps.items()}, None)
        for x in (student, teacher)
    )
    torch.testing.assert_close(method(student, teacher, Labels(labels.repeat(2, 1, 1))), once)


TEACHER_SIDE = ("project", "refine_teacher", "offsets", "relate_teacher", "classify")


def gradients(term, tensors):
    grads = torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True)
    return [grad is not None and bool(grad.any()) for grad in grads]


def test_distillation_never_reaches_the_teacher_side_nor_an_anchor_the_student():
    method, student, teacher, labels = small_case(requires_grad=True)
    terms = method(student, teacher, Labels(labels))
    named = dict(method.named_parameters())
    teacher_side = [value for name, value in named.items() if name.split(".")[2] in TEACHER_SIDE]
    student_side = [value for name, value in named.items() if name.split(".")[2] not in TEACHER_SIDE]
    assert teacher_side
    assert student_side
    for name, term in terms.items():
        anchor = name in method.anchors.values()
        assert not any(gradients(term, leaves(teacher))), name
        assert any(gradients(term, leaves(student))) != anchor, name
        assert any(gradients(term, teacher_side)) == anchor, name
        if anchor:
            assert not any(gradients(term, student_side)), name


def test_unanchored_distillation_trains_the_teacher_side_but_never_the_teacher():
    method, student, teacher, labels = small_case(requires_grad=True, anchor=None)
    terms = method(student, teacher, Labels(labels))
    assert terms.keys() == {"feature", "relation", "logit", "stage_logit"}
    for name in ("feature", "relation"):
        side = [value for key, value in method.alignments[name].named_parameters() if key.split(".")[0] in TEACHER_SIDE]
        assert all(gradients(terms[name], side))
        assert not any(gradients(terms[name], leaves(teacher)))


def train_auxiliary_modules_alone(anchor):
    """80 steps on unrelated random features, labels being a function of the teacher's.

    Returns each distillation term's mean over the first five steps and over the last five, and what a student that
    guesses uniformly would score on the relation in the last five.
    """
    torch.manual_seed(0)
    pairs = [("stage1", "stage1")]
    method = HMKD(SMALL, LARGE, logit=0.0, relation=1.0, patch=2, feature_pairs=pairs, anchor=anchor)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    truth = torch.randn(3, 8)
    history, uniform = {"feature": [], "relation": []}, []
    for _ in range(80):
        student, teacher = random_output(SMALL, 4, 16, 16), random_output(LARGE, 4, 16, 16)
        labels = torch.einsum("kc,bchw->bkhw", truth, teacher.taps["stage1"]).argmax(1).byte()
        terms = method(student, teacher, Labels(labels))
        relate = method.alignments["relation"].relate_teacher
        with torch.no_grad():
            _, P_t = relate(teacher.taps["stage1"], torch.ones(4, 64, dtype=torch.bool))
            uniform.append((P_t - 1 / 64).square().mean().item())
        for name, values in history.items():
            values.append(terms[name].item())
        scale = {"relation": 64.0**2}  # its loss is of the order of n^-2
        optimizer.zero_grad()
        sum(term * scale.get(name, 1.0) for name, term in terms.items()).backward()
        optimizer.step()
    first, last = ({name: sum(v[part]) / 5 for name, v in history.items()} for part in (slice(5), slice(-5, None)))
    return first, last, sum(uniform[-5:]) / 5


def test_unanchored_losses_collapse_without_the_student_and_anchored_ones_do_not():
    first, last, _ = train_auxiliary_modules_alone(anchor=None)
    print("unanchored, last / first:", {name: last[name] / first[name] for name in first})
    assert last["feature"] < 0.5 * first["feature"]
    assert last["relation"] < 0.5 * first["relation"]
    first, last, uniform = train_auxiliary_modules_alone(anchor="labels")
    print("anchored, last / first:", {name: last[name] / first[name] for name in first})
    print("anchored relation / that of a uniform guess:", last["relation"] / uniform)
    assert 0.8 < last["feature"] / first["feature"] < 1.2
    assert 0.8 * first["relation"] < last["relation"]  # the anchor may sharpen P_t, and so raise it
    assert 0.8 < last["relation"] / uniform < 1.2


def test_autocast_rounds_the_convolutions_of_the_feature_terms_and_nothing_else():
    method, student, teacher, labels = small_case()
    method.eval()
    expected = method(student, teacher, Labels(labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method(student, teacher, Labels(labels))
    assert all(term.dtype == torch.float32 for term in found.values())
    rounded = {"feature", "anchor"}
    assert all(torch.equal(found[name], expected[name]) for name in found.keys() - rounded)
    # bfloat16 keeps 8 bits: a rounding is a relative 2^-9.
    assert all(found[name].item() == pytest.approx(expected[name].item(), rel=2e-2) for name in rounded)
    assert not torch.equal(found["feature"], expected["feature"])
