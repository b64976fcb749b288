"""A frozen network shared out over the ranks: each holds its part of every weight and gathers a block at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch._functorch.config
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from models.inference import is_sharded
from utils.distributed import World, all_reduce_max

BLANK = 64  # pixels a side of the image on which a rank looks on: two cells at stride 32, the coarsest of any network


def shard(network: nn.Module, world: World, layout: torch.memory_format) -> None:
    """Moves a frozen network to the ranks' devices, in place: of each weight a part to each (PyTorch's FSDP2).

    A forward pass gathers the weights of one repeated block after another, and for its whole length those of what is
    not repeated: it is one of all ranks, on images of any size each. Alone, a process holds the whole.

    Args:
        network: on the host, without gradients; its weights in the types they are to be gathered in.
        world: this process among its peers.
        layout: of the images, and so of all maps: gathered weights are contiguous.
    """
    if world.size > 1:
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in (*repeated_blocks(network), network):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=layout),))
    else:
        network.to(world.device, memory_format=layout)


@contextmanager
def keep_gathering(network: nn.Module | None, world: World, autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Lets every rank run a sharded network as often as it needs to, or not at all; all ranks enter and leave.

    Each forward pass announces itself to the ranks that are done, and they look on: they gather what it gathers, over
    a blank image. Nothing happens where the network is not sharded.

    Args:
        network: sharded or not, or None.
        world: this process among its peers.
        autocast_dtype: of the forward passes.
    """
    if not is_sharded(network):
        yield
        return

    def announce(*_: object) -> None:
        all_reduce_max(1, world)

    announcement = network.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        announcement.remove()
    blank = torch.zeros(1, 3, BLANK, BLANK, dtype=torch.uint8, device=world.device)
    with torch.autocast(world.device.type, autocast_dtype, enabled=autocast_dtype is not None), torch.no_grad():
        while all_reduce_max(0, world):
            network(blank)


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
    DDP wants them. Evaluation does not use what is compiled (``models.inference.inference``).
    """
    # Of one kind there is a variant for every shape, stage, network and mode; beyond the limit blocks stay eager.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._functorch.config.donated_buffer = False  # the norms of several terms' gradients need a graph several times
    for block in list(repeated_blocks(network)) or [network]:
        block.compile(dynamic=False)
