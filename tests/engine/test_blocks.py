from collections import Counter
from shutil import which

import pytest
import torch
from torch import nn

from engine.sharding import compile_in_place, repeated_blocks
from models import build_model
from models.mit import Block


@pytest.mark.parametrize(
    ("backbone", "head", "expected"),
    [
        ("mit_b0", "segformer", {"Block": 8}),
        ("resnet18", "segformer", {"BasicBlock": 8}),
        ("test_resnet", "deeplabv3", {"Sequential": 4}),  # four convolutions of the pyramid; one block a stage
        ("test_resnet", "segformer", {}),
    ],
)
def test_what_a_network_repeats(backbone, head, expected):
    model = build_model(backbone, head, 3, width=8)
    assert Counter(type(block).__name__ for block in repeated_blocks(model)) == expected
    compile_in_place(model)
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    assert compiled == (list(repeated_blocks(model)) or [model])


class Two(nn.Module):
    """Two blocks on a grid of 4 x 6."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(16, 2, 1, 0.0) for _ in range(2)])

    def forward(self, tokens):
        for block in self.blocks:
            tokens = block(tokens, (4, 6))
        return tokens


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_what_eager_ones_do():
    """Values and, over one graph twice, gradients."""
    torch.manual_seed(0)
    eager, compiled = Two(), Two()
    compiled.load_state_dict(eager.state_dict())
    compile_in_place(compiled)
    tokens = torch.randn(2, 24, 16, requires_grad=True)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    found = [(model, model(tokens)) for model in (eager, compiled)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)
    for term in (lambda x: x.square().mean(), lambda x: x.abs().mean()):
        one, other = (torch.autograd.grad(term(maps), model.parameters(), retain_graph=True) for model, maps in found)
        for expected, gradient in zip(one, other, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
