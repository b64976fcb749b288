"""One process against several: the batch grows with their number (weak scaling), or is divided among them (strong)."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from scripts.benchmarks import step
from scripts.benchmarks.timing import synchronize, time_each
from utils.distributed import all_reduce_sum, init_world

JOBS: dict[str, Callable[[], object]] = {}  # what a process of a team does, by name


class Team:
    """Processes with the environment variables of torchrun, one thread each, that execute jobs together.

    All teams are started first, so that their steps can be timed in turns. ``arguments`` are those of ``start``.
    """

    def __init__(self, size: int, arguments: Sequence[Any]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        context = multiprocessing.get_context("spawn")
        self.processes = [
            ProcessPoolExecutor(1, context, start, ({**common, "RANK": rank, "LOCAL_RANK": rank}, *arguments))
            for rank in range(size)
        ]

    def do(self, job: str) -> None:
        """Lets every process execute a job, and waits."""
        for future in [process.submit(work, job) for process in self.processes]:
            future.result()


def run(
    file: str, options: Sequence[str], batch: int, size: tuple[int, int], rounds: int, processes: int
) -> list[dict[str, Any]]:
    """A row for one process, and for several with ``batch`` images each and with ``batch`` in all.

    Raises:
        ValueError: the batch cannot be divided among the processes.
    """
    if batch % processes:
        raise ValueError(f"--batch {batch} cannot be divided among {processes} processes; give a multiple of it")
    step.load_pair(file, *options)  # raises its errors here, once
    arguments = file, options, {"whole": batch, "part": batch // processes}, size
    one, several = Team(1, arguments), Team(processes, arguments)
    alternatives = {
        "one": lambda: one.do("whole"), "weak": lambda: several.do("whole"), "strong": lambda: several.do("part"),
        "all-reduce": lambda: several.do("all-reduce"),
    }  # fmt: skip
    times = time_each(alternatives, torch.device("cpu"), rounds)
    alone, reduce = times["one"].median, times["all-reduce"].median
    rows = []
    for name, count, each in (("one", 1, batch), ("weak", processes, batch), ("strong", processes, batch // processes)):
        seconds = times[name].median
        rows.append({
            "what": f"{count} process(es), {each} image(s) each", "s": seconds, "spread": times[name].spread,
            "images_per_s": count * each / seconds, "efficiency": count * each / seconds / (count * batch / alone),
            "all_reduce": reduce / seconds if count > 1 else 0.0,
        })  # fmt: skip
    return rows


def start(
    environment: dict[str, Any], file: str, options: Sequence[str], batches: dict[str, int], size: tuple[int, int]
) -> None:
    """Builds the trainer of one process: each of ``batches`` (images by name) is a job, and so is the all-reduce."""
    os.environ |= {name: str(value) for name, value in environment.items()}
    torch.set_num_threads(1)
    world = init_world()
    trainer = step.build(step.load_pair(file, *options), world)
    for name, images in batches.items():
        data = step.random_batch(images, size, world.device.type == "cuda")
        JOBS[name] = lambda data=data: trainer.train_step([data])
    gradients = torch.zeros(sum(each.numel() for each in trainer.distiller.parameters()), device=world.device)
    JOBS["all-reduce"] = lambda: all_reduce_sum(gradients)


def work(job: str) -> None:
    """Trains a step, or all-reduces as many numbers as a step does."""
    JOBS[job]()
    if torch.cuda.is_available():
        synchronize(torch.device("cuda"))
