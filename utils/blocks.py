"""The blocks that a network repeats: what is compiled once for all of them, and gathered one at a time."""

from collections import Counter
from collections.abc import Iterator

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


def compile_blocks(network: nn.Module) -> None:
    """``torch.compile`` of every repeated block."""
    for block in repeated_blocks(network):
        block.compile()
