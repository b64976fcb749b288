import pytest
import torch
from torch import nn

from losses import Composed, build_method
from losses.base import Method
from tests.losses.networks import LARGE, SMALL, random_output, zero_labels


class Scaled(Method):
    """Terms 'a' and ``other``: the mean of the student's logits times a factor."""

    def __init__(self, factor, other):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.weights = {"a": factor, other: 1.0}

    def forward(self, student, teacher, labels):
        return dict.fromkeys(self.weights, self.factor * student)

    def counts(self, labels):
        return {name: labels.sum() * self.factor.detach() for name in self.weights}


def test_terms_stand_side_by_side_under_names_of_their_own():
    method = Composed({"one": Scaled(2.0, "b"), "two": Scaled(3.0, "c")})
    assert method.weights == {"one.a": 2.0, "b": 1.0, "two.a": 3.0, "c": 1.0}
    terms = method(torch.tensor(5.0), None, None)
    assert {name: term.item() for name, term in terms.items()} == {"one.a": 10, "b": 10, "two.a": 15, "c": 15}
    counts = method.counts(torch.tensor([1.0, 2.0]))
    assert {name: count.item() for name, count in counts.items()} == {"one.a": 6, "b": 6, "two.a": 9, "c": 9}
    assert set(method.state_dict()) == {"methods.one.factor", "methods.two.factor"}


def test_targets_stand_side_by_side_too():
    networks = SMALL, LARGE
    hints = build_method("fitnet", *networks), build_method("fitnet", *networks, pairs=[("stage1", "head")])
    method = Composed({"one": hints[0], "two": hints[1], "kd": build_method("kd", *networks)})
    outputs = [random_output(network, 1, 4, 4) for network in networks]
    found = method.targets(*outputs, zero_labels(1, 4, 4))
    assert {term: list(steps) for term, steps in found.items()} == {
        "one.fitnet": ["head"], "two.fitnet": ["stage1"], "kd.logit": ["probabilities"]
    }  # fmt: skip
    torch.testing.assert_close(found["kd.logit"]["probabilities"], outputs[1].logits.softmax(1))
    assert found["two.fitnet"]["stage1"] is outputs[1].taps["stage1"]


def test_nothing_is_no_method():
    with pytest.raises(ValueError, match="methods is empty"):
        Composed({})
