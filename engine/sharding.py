"""A frozen network whose weights the ranks share: each holds a part of every weight and gathers one block at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch._functorch.config
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from models.inference import sharded_part
from utils.distributed import World, all_reduce_max

DUMMY_SIDE = 64  # pixels: two cells at stride 32, the largest stride of any network


def shard_network(network: nn.Module, world: World, channels_last: bool) -> None:
    """Moves a frozen network to the devices of all ranks, in place: a part of each weight to each rank (FSDP2).

    A forward pass gathers the weights of one repeated block at a time; the weights outside these blocks stay gathered
    until the pass ends. All ranks must run the forward pass together; their images may have different sizes.

    Args:
        network: on the host, without gradients; its weights are gathered in the dtypes that they have now.
        channels_last: memory layout of the images, and so of all maps. Gathered weights are always contiguous.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in (*repeated_blocks(network), network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=layout),))


@contextmanager
def keep_gathering(model: nn.Module | None, world: World, autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, each rank may run a sharded model any number of times, or never; all ranks must enter and leave.

    A forward pass needs all ranks, because it gathers their parts of the weights. So each pass first tells the other
    ranks that it starts, and the ranks that have finished join it with a dummy image. Without a sharded module,
    nothing happens.
    """
    network = sharded_part(model)
    if network is None:
        yield
        return

    def announce(*_: object) -> None:
        all_reduce_max(1, world)

    announcement = network.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        announcement.remove()
    dummy = torch.zeros(1, 3, DUMMY_SIDE, DUMMY_SIDE, dtype=torch.uint8, device=world.device)
    with torch.autocast(world.device.type, autocast_dtype, enabled=autocast_dtype is not None), torch.no_grad():
        while all_reduce_max(0, world):
            network(dummy)


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The modules of several layers that occur more than once, by type, in one ``ModuleList`` or ``Sequential``.

    For example the blocks of a stage of a transformer or a ResNet, or the branches of a pyramid. None of them lies
    inside another.
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
    """``torch.compile`` of every repeated block, or of the whole network if none repeats, when it first runs.

    Blocks of the same kind and shape are compiled once. Block by block, gradients become ready one after another, so
    DDP can send them early. Evaluation runs the original, not the compiled blocks (``models.inference.inference``).
    """
    # Each shape, stage, network and mode needs a variant of its own; beyond the limit blocks would run uncompiled.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._functorch.config.donated_buffer = False  # gradient norms of several terms use a graph several times
    for block in list(repeated_blocks(network)) or [network]:
        block.compile(dynamic=False)
