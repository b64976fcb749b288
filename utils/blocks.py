"""The blocks that a network repeats: what is compiled once for all of them, and gathered one at a time."""

from collections import Counter
from collections.abc import Iterator

import torch
import torch._dynamo
import torch._functorch.config
from torch import nn


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Elements of a network's sequences that are modules of several layers and have a sibling of their own type.

    Such are the blocks of a transformer's or a ResNet's stage and the branches of a pyramid; never one inside another.
    """
    for module in network.children():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            types = Counter(type(element) for element in module)
            for element in module:
                if types[type(element)] > 1 and len(list(element.children())) > 0:
                    yield element
                else:
                    yield from repeated_blocks(element)
        else:
            yield from repeated_blocks(module)


def compile_in_place(network: nn.Module) -> None:
    """``torch.compile`` of every repeated block, or of the whole network where none repeats, when it first runs.

    Blocks of one kind and shape are compiled once, and the gradients of one are there before those of the next, as
    DDP wants them. Evaluation does not use what is compiled (``utils.evaluation.inference``).
    """
    # Of one kind there is a variant for every shape, stage, network and mode; beyond the limit blocks stay eager.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._functorch.config.donated_buffer = False  # the norms of several terms' gradients need a graph several times
    for block in list(repeated_blocks(network)) or [network]:
        block.compile(dynamic=False)
