import pytest
import torch
from torch import nn

from losses import Composed
from losses.base import Method


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


def test_nothing_is_no_method():
    with pytest.raises(ValueError, match="methods is empty"):
        Composed({})
