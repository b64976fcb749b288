"""CWD: values by hand, and what it does not depend on. What holds of every feature method is in test_fitnet.py."""

import math

import pytest
import torch
from torch import nn

from losses.cwd import CWD, channel_divergence
from losses.labels import Labels
from tests.losses.networks import LARGE, SMALL, random_ids, random_output

KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # of (3/4, 1/4) from (1/2, 1/2)


def rows(*channels):
    """The cells of each channel -> 1 C 1 w."""
    return torch.tensor(channels)[None, :, None]


def test_divergence_by_hand():
    T = 2.0
    teacher = rows((T * math.log(3), 0.0, 50.0), (5.0, 5.0, -50.0))  # (3/4, 1/4) and (1/2, 1/2) over the valid cells
    student = rows((1.0, 1.0, 9.0), (0.0, 0.0, 9.0))
    valid = torch.tensor([[[True, True, False]]])
    assert channel_divergence(student, teacher, valid, T).item() == pytest.approx(T**2 * KL / 2)


def test_images_of_nothing_but_void_are_left_out():
    student, teacher = torch.zeros(2, 1, 1, 2), rows((math.log(3), 0.0)).repeat(2, 1, 1, 1)
    valid = torch.tensor([[[True, True]], [[False, False]]])
    assert channel_divergence(student, teacher, valid, 1.0).item() == pytest.approx(KL)


def small_case(**options):
    torch.manual_seed(0)
    outputs = (random_output(network, 3, 6, 8) for network in (SMALL, LARGE))
    return CWD(SMALL, LARGE, **options), *outputs, random_ids(3, 6, 8)


def test_the_terms_are_the_divergences_of_features_and_of_logits():
    method, student, teacher, labels = small_case(pairs=[("stage1", "stage2")])
    labels[0] = 255
    valid, T = labels != 255, 4.0
    terms = method(student, teacher, Labels(labels))
    assert isinstance(method.project["cwd_feature"], nn.Identity)  # 8 channels on either side
    feature = channel_divergence(student.taps["stage2"], teacher.taps["stage1"], valid, T)
    assert terms == {"cwd_feature": feature, "cwd_logit": channel_divergence(student.logits, teacher.logits, valid, T)}
    assert method.weights == {"cwd_feature": 50.0, "cwd_logit": 3.0}
    assert {name: count.item() for name, count in method.counts(Labels(labels)).items()} == dict.fromkeys(terms, 2)


def test_nothing_is_lost_where_the_student_is_the_teacher():
    method, _, teacher, labels = small_case()
    assert not list(method.parameters())
    assert {name: term.item() for name, term in method(teacher, teacher, Labels(labels)).items()} == {
        "cwd_feature": 0,
        "cwd_logit": 0,
    }


def test_constants_names_of_classes_and_resolution_do_not_matter():
    method, student, teacher, labels = small_case()
    expected = method(student, teacher, Labels(labels))

    def change(output, constants, order, double):
        def f(x):
            x = x[:, order[: x.shape[1]].argsort()] + constants[: x.shape[1], None, None]
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2) if double else x

        return output._replace(logits=f(output.logits), taps={"head": f(output.taps["head"])})

    order = torch.tensor([2, 0, 1, 3])
    for double in (False, True):
        y = labels.repeat_interleave(2, -1).repeat_interleave(2, -2) if double else labels
        changed = (change(output, 5 * torch.randn(4), order, double) for output in (student, teacher))
        torch.testing.assert_close(method(*changed, Labels(y)), expected)


def test_underflow_of_a_softmax_stays_finite():
    student, teacher = rows((0.0, -1000.0)), rows((0.0, 0.0))  # log (1/2) + 1000 / T over two
    loss = channel_divergence(student, teacher, torch.ones(1, 1, 2, dtype=torch.bool), 1.0)
    assert loss.item() == pytest.approx(500 - math.log(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit": -1.0}, "none may be negative"),
        ({"feature": 0.0, "logit": 0.0}, "one at least must be positive"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"pairs": []}, "pairs is"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CWD(SMALL, LARGE, **options)


def test_terms_of_weight_zero_are_not_built():
    method, student, teacher, labels = small_case(feature=0.0, pairs=[("stage1", "stage1")])
    assert not list(method.parameters())
    assert list(method(student, teacher, Labels(labels))) == list(method.weights) == ["cwd_logit"]
