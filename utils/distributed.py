"""Who am I among how many: one process, many GPUs or many nodes look the same to the code above."""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World(NamedTuple):
    """This process among its peers, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_world(timeout: timedelta = timedelta(minutes=30)) -> World:
    """Joins the process group that torchrun's variables describe; alone where there are none.

    Every rank takes the GPU of its local rank and NCCL, and gloo for what lies on the host, so that a word between
    hosts does not wait for what GPUs have in hand; without GPUs, the CPU and gloo.

    Raises:
        ValueError: if there are GPUs, but fewer than processes on this node.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}; "
                "start at most as many processes as GPUs (torchrun --nproc_per_node)"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        return World(0, 1, device)
    on_gpu = device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=timeout, device_id=device if on_gpu else None)
    return World(dist.get_rank(), dist.get_world_size(), device)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over all ranks, in place; the tensor itself where there is one rank."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def largest(value: int, world: World) -> int:
    """The largest of all ranks' ``value``, on every rank; from host to host, whatever the GPUs are doing."""
    if world.size == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather_objects(value: object) -> list:
    """``value`` of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: object) -> object:
    """Rank 0's ``value``, on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Every rank takes rank 0's buffers (running statistics)."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def close_world() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
