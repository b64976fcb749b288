"""The process group: ranks, their devices, collectives, lost processes and stop signals."""

import hashlib
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

ROLL_CALL = 5.0  # seconds in which the surviving ranks report after a rank was lost
# The data loader and gloo have no error classes of their own, so their errors are recognised by their text.
LOST_WORKER = re.compile(r"DataLoader (worker|timed out)")
LOST_PEER = re.compile(r"gloo/|Connection (closed|reset) by peer|Timed out waiting|Broken pipe")


class World(NamedTuple):
    """This process: its rank, the number of processes and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def make_deterministic() -> None:
    """Makes the same computation give the same bits, also on a GPU. Call it before anything else.

    An operation that has no deterministic form becomes an error. Reductions between GPUs are done by NCCL, which adds
    in the same order on the same machines.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def init_world(timeout: float = 1800.0) -> World:
    """Joins the process group that torchrun's environment variables describe; without them, there is one process.

    With GPUs, each rank takes the GPU of its local rank. NCCL then communicates GPU tensors, and gloo CPU tensors, so
    that messages between hosts do not wait for the GPUs. Without GPUs, gloo does everything. A rank waits ``timeout``
    seconds for the others.

    Raises:
        ValueError: this node has GPUs, but fewer than processes.
        torch.distributed.DistError: the other ranks do not join in time.
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
        return World(0, 1, torch.device("mps") if torch.backends.mps.is_available() else device)
    on_gpu = device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    limit = timedelta(seconds=timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    dist.init_process_group(
        backend,
        store=fresh_store(store, rank, size, timeout),
        rank=rank,
        world_size=size,
        timeout=limit,
        device_id=device if on_gpu else None,
    )
    return World(rank, size, device)


def fresh_store(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """A part of the store in which no rank has written yet, the same part on all ranks.

    torchrun's store survives when torchrun restarts the ranks. Without a fresh part, a new rank could read the address
    of a dead rank there, and connect to nobody or wait for ever. (torchrun's restart counter does not help: each node
    counts only its own restarts.) So each rank writes a new random token. Rank 0 answers every token with its own,
    which names the part of the store, and every rank confirms it.

    Rank 0 waits ``timeout`` seconds; the other ranks wait as long as the store does.

    Raises:
        torch.distributed.DistError: the other ranks do not join in time.
    """
    token, deadline = uuid4().hex, time.monotonic() + timeout
    store.delete_key(f"roll_call/{rank}")
    store.set(f"token/{rank}", token)
    if rank > 0:
        first = store.get(f"answer/{token}").decode()
        store.set(f"confirmed/{first}/{rank}", "")
        return dist.PrefixStore(first, store)
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"after {timeout:g} s, these ranks have not joined: {sorted(missing)}")
        for other in missing:
            if store.check([f"token/{other}"]):
                store.set(f"answer/{store.get(f'token/{other}').decode()}", token)
        time.sleep(0.01)
        missing = {other for other in missing if not store.check([f"confirmed/{token}/{other}"])}
    return dist.PrefixStore(token, store)


def print_first(message: str) -> bool:
    """Whether this rank is the first under torchrun that asks to print ``message``; True without torchrun.

    It asks torchrun's own store, so it works before the process group is there and after an error. The other ranks
    wait a second: torchrun ends all ranks when one has ended, and the first must print before.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    key = f"printed/{attempt}/{hashlib.sha256(message.encode()).hexdigest()}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, timeout=timedelta(seconds=ROLL_CALL), wait_for_workers=False)
        first = store.add(key, 1) == 1
    except dist.DistError:
        return True
    if not first:
        time.sleep(1)
    return first


def lost_process_message(error: RuntimeError | ConnectionError, timeout: float) -> str:
    """A plain message for the error that follows when another rank or a worker of the data loader died or hangs.

    It names the ranks that do not respond. If a worker is lost, the other workers are ended.

    Raises:
        RuntimeError: ``error`` itself, if it has another cause.
    """
    if isinstance(error, ConnectionError) or LOST_WORKER.search(str(error)):
        end_workers()
        cause = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # it names the signal
        return (
            "a process that loads data died (perhaps memory or shared memory ran out), or gave nothing within "
            f"{timeout:g} s (train.timeout). With data.workers=0 no such process is needed. {_first_line(cause)}"
        )
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if alone or not (isinstance(error, dist.DistError) or LOST_PEER.search(str(error))):
        raise error
    silent = ", ".join(map(str, silent_ranks()))
    return (
        f"rank {os.environ['RANK']}: another rank died, or did not answer within {timeout:g} s (train.timeout); "
        f"no answer from rank {silent or '(unknown: torchrun itself may have ended)'}. See the last output of that "
        f"rank. {_first_line(error)}"
    )


def end_workers() -> None:
    """Kills the worker processes of the data loader: this process cannot end while one of them hangs."""
    children = getattr(signal, "SIGCHLD", None)  # not on Windows
    handler = children and signal.signal(children, signal.SIG_DFL)  # PyTorch's would report each of them as lost
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    if children:
        signal.signal(children, handler)


def silent_ranks() -> list[int]:
    """Ranks that do not report within ``ROLL_CALL`` seconds; empty if torchrun's store cannot be reached.

    The ranks report to this store because it survives them.
    """
    seconds = timedelta(seconds=ROLL_CALL)
    keys = [f"roll_call/{rank}" for rank in range(int(os.environ["WORLD_SIZE"]))]
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(*address, is_master=False, timeout=seconds)
        store.set(keys[int(os.environ["RANK"])], "here")
        deadline, silent = time.monotonic() + ROLL_CALL, keys
        while silent and time.monotonic() < deadline:
            time.sleep(0.1)
            silent = [key for key in silent if not store.check([key])]
    except dist.DistError:
        return []
    return [keys.index(key) for key in silent]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over all ranks, in place; with one rank, the tensor itself."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(value: int, world: World) -> int:
    """The maximum of ``value`` over all ranks, on every rank. It goes through the hosts and does not wait for GPUs."""
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


def broadcast_from_main(value: object) -> object:
    """Rank 0's ``value``, on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def call_on_main(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns on rank 0, on every rank. Only rank 0 calls it.

    Raises:
        ValueError, OSError: on every rank, as the function on rank 0.
    """
    result = error = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            result = function(*arguments)
        except (ValueError, OSError) as raised:
            error = raised
    result, error = broadcast_from_main((result, error))
    if error is not None:
        raise error
    return result


def broadcast_buffers(module: nn.Module) -> None:
    """Copies rank 0's buffers (running statistics) to every rank, in one message for each dtype."""
    if not dist.is_initialized():
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        groups.setdefault(buffer.dtype, []).append(buffer)
    for buffers in groups.values():
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, src=0)
        for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def _first_line(error: Exception) -> str:
    """The type and the first line of an error; of one in a worker, which comes with its traceback, the last line."""
    lines = str(error).strip().splitlines() or [""]
    return f"({lines[-1]})" if lines[0].startswith("Caught ") else f"({type(error).__name__}: {lines[0].strip()})"


SECOND_AFTER = 3.0  # seconds; a Ctrl-C that comes sooner after the first is the same one, delivered twice


class StopSignals:
    """Remembers SIGINT, SIGTERM and SIGUSR1, so that the run can stop after the current step.

    Launchers and schedulers may deliver the same signal more than once, so further signals change nothing. Only a
    second Ctrl-C, some seconds after the first signal, stops at once.
    """

    def __init__(self) -> None:
        self.received, self.first = 0, 0.0
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), self._remember)

    def _remember(self, number: int, frame: object) -> None:
        if not self.received:
            self.received, self.first = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.first > SECOND_AFTER:
            raise KeyboardInterrupt

    def received_by_any(self, world: World) -> int:
        """A signal that any rank has received, the same on every rank; 0 without one."""
        return all_reduce_max(self.received, world)
