import pytest
import torch
from torch import nn

from engine.optim import (
    build_optimizer,
    gradient_norms,
    learning_rate_factor,
    parameter_groups,
    restore_optimizer,
    set_learning_rate,
    update_average,
    weight_factor,
)


def test_poly_decay_by_hand():
    factor = [learning_rate_factor(step, max_iters=4, power=2.0) for step in range(5)]
    assert factor == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16, 0])


def test_warmup_rises_linearly_from_its_ratio():
    factor = [learning_rate_factor(s, max_iters=10**9, power=1.0, warmup_iters=4, warmup_ratio=0.2) for s in range(6)]
    assert factor == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], abs=1e-6)


def test_a_restarted_schedule_is_two_schedules_by_hand():
    """Four steps with one of warm-up from 0.5, then eight of the same kind."""
    factor = [
        learning_rate_factor(s, max_iters=12, power=1.0, warmup_iters=1, warmup_ratio=0.5, restart_at=4)
        for s in range(13)
    ]
    assert factor == pytest.approx([0.5, 3 / 4, 2 / 4, 1 / 4, 0.5, *(k / 8 for k in range(7, -1, -1))])


def test_cosine_falls_to_zero_along_half_a_wave():
    """(1 + cos(pi x)) / 2 at x = 0, 1/3, 1/2, 2/3, 1; and twice where the schedule starts again."""
    factor = [learning_rate_factor(step, max_iters=6, power=0.9, type="cosine") for step in (0, 2, 3, 4, 6)]
    assert factor == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    factor = [learning_rate_factor(s, max_iters=6, power=0.9, type="cosine", restart_at=2) for s in (0, 1, 2, 4, 6)]
    assert factor == pytest.approx([1, 0.5, 1, 0.5, 0])


def test_a_step_outside_the_schedule_is_refused():
    with pytest.raises(ValueError, match="step 11 is outside 0..10"):
        learning_rate_factor(11, max_iters=10, power=0.9)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)


def groups_of(**options):
    model = Tiny()
    groups = parameter_groups(model.backbone, model, lr=0.1, weight_decay=0.01, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        (group["base_lr"], group["weight_decay"]): sorted(names[id(p)] for p in group["params"]) for group in groups
    }


def test_head_learns_faster_and_norms_and_biases_do_not_decay():
    assert groups_of(head_lr_mult=10.0, decay_norm_bias=False) == {
        (0.1, 0.01): ["backbone.0.weight"],
        (0.1, 0.0): ["backbone.0.bias", "backbone.1.bias", "backbone.1.weight"],
        (1.0, 0.01): ["head.weight"],
        (1.0, 0.0): ["head.bias"],
    }


def test_every_parameter_is_in_one_group():
    groups = groups_of(head_lr_mult=1.0, decay_norm_bias=True)
    assert list(groups) == [(0.1, 0.01)]
    assert len(groups[0.1, 0.01]) == 6


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_step_moves_by_the_scheduled_rate(name):
    weight = nn.Parameter(torch.ones(1))
    group = {"params": [weight], "base_lr": 0.5, "lr": 0.5, "weight_decay": 0.0}
    optimizer = build_optimizer(name, [group], momentum=0.9, betas=(0.9, 0.999))
    set_learning_rate(optimizer, 0.5)
    weight.grad = torch.ones(1)
    optimizer.step()
    # The first step of either moves by lr * 1: SGD's momentum is empty, Adam's ratio of moments is one.
    assert weight.item() == pytest.approx(0.75, abs=1e-6)


def test_gradient_norms_by_hand():
    linear = nn.Linear(2, 1, bias=False)
    out = linear(torch.tensor([[3.0, 4.0]])).sum()
    terms = {"a": out, "b": 2 * out, "free": torch.tensor(1.0, requires_grad=True)}
    assert gradient_norms(terms, {"a": 1.0, "b": 0.5, "free": 1.0}, linear) == pytest.approx(
        {"a": 5.0, "b": 5.0, "free": 0.0}
    )
    out.backward()  # the graph is still there


@pytest.mark.parametrize(
    ("type", "expected"),
    [("linear", [2, 2, 2, 1.5, 1, 0.5, 0, 0]), ("cosine", [2, 2, 2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0, 0]),
     ("step", [2, 2, 2, 2, 2, 2, 0, 0])],
)  # fmt: skip
def test_weight_factor(type, expected):
    """From 2 to 0 in four steps from step 2 on."""
    found = [weight_factor(step, type=type, iters=4, start=2.0, end=0.0, begin=2) for step in range(8)]
    assert found == pytest.approx(expected)


def adam_with_marks(model, **options):
    """An AdamW in whose state each parameter's first moment is the number of the parameter."""
    groups = parameter_groups(model.backbone, model, lr=0.1, weight_decay=0.01, **options)
    optimizer = build_optimizer("adamw", groups, momentum=0.9, betas=(0.9, 0.999))
    for number, parameter in enumerate(model.parameters()):
        moments = {name: torch.full_like(parameter, number) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(3.0), **moments}
    return optimizer


def test_each_parameter_keeps_its_state_when_the_groups_change():
    """One group becomes four, in another order; their rates and decays stay those of the new optimizer."""
    model, same = Tiny(), {"head_lr_mult": 1.0, "decay_norm_bias": True}
    saved = adam_with_marks(model, **same).state_dict()
    other = adam_with_marks(model, head_lr_mult=10.0, decay_norm_bias=False)
    wanted = [(group["lr"], group["weight_decay"]) for group in other.param_groups]
    other.state.clear()
    restore_optimizer(other, saved, parameter_groups(model.backbone, model, lr=0.1, weight_decay=0.01, **same))
    assert [(group["lr"], group["weight_decay"]) for group in other.param_groups] == wanted
    assert len(wanted) == 4
    assert [other.state[p]["exp_avg"].unique().tolist() for p in model.parameters()] == [[n] for n in range(6)]


def test_an_optimizer_of_other_parameters_is_refused():
    model = Tiny()
    optimizer = adam_with_marks(model, head_lr_mult=1.0, decay_norm_bias=True)
    with pytest.raises(ValueError, match="its optimizer has 6 parameters; this one has 0"):
        restore_optimizer(optimizer, optimizer.state_dict(), [])


def test_the_average_follows_parameters_and_buffers_and_copies_counters():
    """Weights 0 -> 1; the decays are 1/10 and 2/11 at the first steps, and later the given one."""
    average, network = (torch.nn.BatchNorm1d(1) for _ in range(2))
    for tensor in (average.weight, average.running_mean):
        tensor.data.zero_()
    for tensor in (network.weight, network.running_mean, network.num_batches_tracked):
        tensor.data.fill_(1)
    for step, expected in ((0, 0.9), (1, 1 - 0.1 * 2 / 11), (10**6, 1 - 0.1 * 2 / 11 * 0.75)):
        update_average(average, network, 0.75, step)
        assert average.weight.item() == average.running_mean.item() == pytest.approx(expected)
        assert average.num_batches_tracked.item() == 1
