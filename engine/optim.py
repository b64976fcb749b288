"""The optimizer, the learning rate as a pure function of the step, and the gradient norm of each loss term."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def learning_rate_factor(
    step: int, *, max_iters: int, power: float, warmup_iters: int = 0, warmup_ratio: float = 1e-6,
    restart_at: int | None = None, type: str = "poly",
) -> float:  # fmt: skip
    """Factor on the base learning rate at ``step`` (0-based): linear warm-up times a decay to 0.

    factor = decay(step / max_iters) * (warmup_ratio + (1 - warmup_ratio) * min(1, step / warmup_iters))

    decay(x) is (1 - x)^power for ``'poly'``, and (1 + cos(pi x)) / 2 for ``'cosine'``.

    With ``restart_at``, the first ``restart_at`` steps are a whole schedule, and the steps after them are another.

    Raises:
        ValueError: if ``step`` is outside 0..max_iters.
    """
    if not 0 <= step <= max_iters:
        raise ValueError(f"step {step} is outside 0..{max_iters} (schedule.max_iters)")
    if restart_at is not None:
        step, max_iters = (step, restart_at) if step < restart_at else (step - restart_at, max_iters - restart_at)
    x = step / max_iters
    decay = (1 - x) ** power if type == "poly" else (1 + math.cos(math.pi * x)) / 2
    warmup = warmup_ratio + (1 - warmup_ratio) * min(1.0, step / warmup_iters) if warmup_iters else 1.0
    return decay * warmup


def weight_factor(step: int, *, type: str, iters: int, start: float, end: float, begin: int) -> float:
    """Factor on a loss term's weight at ``step`` (0-based).

    ``start`` until step ``begin``, ``end`` from step ``begin + iters``. Between them, with x = (step - begin) / iters,
    the share of the way from ``start`` to ``end`` is x (``'linear'``), (1 - cos(pi x)) / 2 (``'cosine'``) or 0
    (``'step'``).
    """
    x = min(1.0, max(0.0, (step - begin) / iters))
    share = {"linear": x, "cosine": (1 - math.cos(math.pi * x)) / 2, "step": float(x == 1)}[type]
    return start + (end - start) * share


def parameter_groups(
    backbone: nn.Module, trained: nn.Module, *, lr: float, head_lr_mult: float, weight_decay: float,
    decay_norm_bias: bool,
) -> list[dict]:  # fmt: skip
    """Up to four groups: (backbone | everything else) x (with weight decay | without it).

    Each group has a ``base_lr``, which ``set_learning_rate`` multiplies by the schedule's factor.

    Args:
        backbone: its parameters have the learning rate ``lr``.
        trained: all that is trained; its parameters outside the backbone have ``lr * head_lr_mult``.
        decay_norm_bias: whether one-dimensional parameters (norms, biases) have weight decay too.
    """
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in trained.parameters():
        if parameter.requires_grad:
            rate = lr if id(parameter) in in_backbone else lr * head_lr_mult
            decay = weight_decay if decay_norm_bias or parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def build_optimizer(
    type: Literal["sgd", "adamw"], groups: list[dict], *, momentum: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Fused SGD with momentum or fused AdamW; ``groups`` have their own learning rates and weight decay."""
    if type == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
        _start_momentum(optimizer)
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives each parameter of an SGD with momentum a buffer of zeros, where it has none.

    If the optimizer creates the buffer itself and a scaler skips the first step, it stays uninitialised.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def restore_optimizer(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], saved_groups: Sequence[Mapping[str, Any]]
) -> None:
    """Loads the state of each parameter (moments, momentum). The groups and their hyperparameters stay as they are.

    Args:
        optimizer: of the same type as the saved one; it may group the parameters in another way.
        saved: the ``state_dict()`` of the saved optimizer.
        saved_groups: the groups of the saved optimizer, with the parameters of ``optimizer``.

    Raises:
        ValueError: the saved optimizer has another number of parameters.
    """
    parameters = [parameter for group in saved_groups for parameter in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    if len(indices) != len(parameters):
        raise ValueError(f"its optimizer has {len(indices)} parameters; this one has {len(parameters)}")
    index_of = dict(zip(map(id, parameters), indices, strict=True))
    groups = [
        {**group, "params": [index_of[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    _start_momentum(optimizer)  # a saved optimizer without momentum has no buffers


def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Moves an average of a network's weights towards its present weights, in place.

    average = d * average + (1 - d) * network with d = min(decay, (1 + step) / (10 + step)), for all parameters and
    buffers of a floating dtype. Other buffers are copied. The smaller d of the first steps lets the average forget the
    initial weights.

    Args:
        decay: largest d, in [0, 1).
        step: number of updates before this one.
    """
    averages, values = ([*module.parameters(), *module.buffers()] for module in (average, network))
    floating = [(old, new) for old, new in zip(averages, values, strict=True) if old.is_floating_point()]
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(*map(list, zip(*floating, strict=True)), None)
    for old, new in zip(averages, values, strict=True):
        if not old.is_floating_point():
            old.copy_(new)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def gradient_norms(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], module: nn.Module, scale: float = 1.0
) -> dict[str, float]:
    """L2 norm of each weighted term's gradient on the parameters of ``module``; costs one backward pass per term.

    Every rank must call it, because SyncBatchNorm communicates in its backward pass. The terms are multiplied by
    ``scale`` before the backward pass and the norms divided by it, so that float16 gradients do not underflow.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    norms = {}
    for name, weight in weights.items():
        if not terms[name].requires_grad:  # it reads frozen parts only
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(scale * weight * terms[name], parameters, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt().item() / scale if squares else 0.0
    return norms
