"""Who am I among how many: one process, many GPUs or many nodes look the same to the code above."""

import multiprocessing
import os
import re
import signal
import time
from datetime import timedelta
from typing import NamedTuple
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

ROLL_CALL = 5.0  # seconds in which ranks that lost one say that they are there themselves
# The loader and gloo have no error classes of their own: what they say.
LOST_WORKER = re.compile(r"DataLoader (worker|timed out)")
LOST_PEER = re.compile(r"gloo/|Connection (closed|reset) by peer|Timed out waiting|Broken pipe")


class World(NamedTuple):
    """This process among its peers, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def make_deterministic() -> None:
    """From here on the same computation gives the same bits, on a GPU too; what cannot is an error. To be called first.

    Reductions between GPUs are NCCL's business; on the same machines it adds up in the same order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def init_world(timeout: float = 1800.0) -> World:
    """Joins the process group that torchrun's variables describe; alone where there are none.

    Every rank takes the GPU of its local rank and NCCL, and gloo for what lies on the host, so that a word between
    hosts does not wait for what GPUs have in hand; without GPUs, the CPU and gloo.

    Args:
        timeout: seconds that a rank waits for the others.

    Raises:
        ValueError: if there are GPUs, but fewer than processes on this node.
        torch.distributed.DistError: if the others do not come.
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
    """A part of the store in which no rank has written yet, the same on all ranks.

    torchrun's store outlives the ranks that it starts anew. PyTorch would read there where the dead have listened, if
    it comes before the living have said where they do: a rank then knocks at a closed door, or waits for ever. (What
    torchrun counts tells no life from another: each of its agents counts only the deaths on its own node.) So each
    rank says a word that none has said before, rank 0 answers with its own, and is answered.

    Args:
        store: of all ranks.
        rank, size: this one's number, and of how many.
        timeout: seconds that rank 0 waits; others wait as long as the store does.

    Raises:
        torch.distributed.DistError: if the others do not come.
    """
    word, deadline = uuid4().hex, time.monotonic() + timeout
    store.delete_key(f"roll_call/{rank}")
    store.set(f"word/{rank}", word)
    if rank > 0:
        first = store.get(f"answer/{word}").decode()
        store.set(f"came/{first}/{rank}", "")
        return dist.PrefixStore(first, store)
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"after {timeout:g} s, these ranks have not come: {sorted(missing)}")
        for other in missing:
            if store.check([f"word/{other}"]):
                store.set(f"answer/{store.get(f'word/{other}').decode()}", word)
        time.sleep(0.01)
        missing = {other for other in missing if not store.check([f"came/{word}/{other}"])}
    return dist.PrefixStore(word, store)


def lost_process_message(error: RuntimeError, timeout: float) -> str:
    """In plain words, that another rank or a loader's worker died or hangs, and which ranks are not heard of any more.

    Ends the loader's other workers.

    Raises:
        RuntimeError: ``error`` itself, if it is about something else.
    """
    if LOST_WORKER.search(str(error)):
        end_workers()
        cause = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # says by which signal
        return (
            "a process that loads data died, as where memory or shared memory runs out, or gave nothing within "
            f"{timeout:g} s (train.timeout); data.workers says how many there are, 0 loads in the main process. "
            f"{_first_line(cause)}"
        )
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if alone or not (isinstance(error, dist.DistError) or LOST_PEER.search(str(error))):
        raise error
    silent = ", ".join(map(str, silent_ranks()))
    return (
        f"rank {os.environ['RANK']}: another rank died, or did not answer within {timeout:g} s (train.timeout); "
        f"no word from rank {silent or '(unknown: the one that keeps the roll may be gone)'}. See what that one said "
        f"last. {_first_line(error)}"
    )


def end_workers() -> None:
    """Kills the loader's processes: one that hangs would not let this one end."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would say of each of these that it was lost
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, handler)


def silent_ranks() -> list[int]:
    """Ranks that do not say that they are there while this one does; none if there is nobody to say it to.

    The word goes by torchrun's own store, which outlives the ranks.
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
    """Sum of ``tensor`` over all ranks, in place; the tensor itself where there is one rank."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(value: int, world: World) -> int:
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


def broadcast_from_main(value: object) -> object:
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


def _first_line(error: Exception) -> str:
    return f"({type(error).__name__}: {str(error).partition(chr(10))[0].strip()})"


IMPATIENT_AFTER = 3.0  # seconds; a Ctrl-C sooner after the first is the same one, arriving by another way


class StopSignals:
    """SIGINT, SIGTERM and SIGUSR1 ask for a stop at the next step boundary.

    Launchers and schedulers may deliver the same signal more than once, so it only ever asks. A second Ctrl-C, some
    seconds after the first, stops at once.
    """

    def __init__(self) -> None:
        self.received, self.first = 0, 0.0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        if not self.received:
            self.received, self.first = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.first > IMPATIENT_AFTER:
            raise KeyboardInterrupt

    def received_by_any(self, world: World) -> int:
        """The signal that any rank was sent, the same on every rank, or 0."""
        return all_reduce_max(self.received, world)
