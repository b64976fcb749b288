"""One process against several: the batch grows with their number (weak scaling), or is divided among them (strong)."""

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks import step
from scripts.benchmarks.timing import synchronize, time_each
from utils.distributed import all_reduce_sum, close_world, init_world

ROOT = Path(__file__).resolve().parents[2]


class Team:
    """Processes with the environment variables of torchrun, one thread each, that execute jobs together.

    All teams are started first, so that their steps can be timed in turns.

    Args:
        size: number of processes.
        arguments: of ``work``, as on a command line.
    """

    def __init__(self, size: int, arguments: Sequence[str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments], cwd=ROOT, text=True,
                env=os.environ | {k: str(v) for k, v in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for rank in range(size)
        ]  # fmt: skip

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()

    def do(self, job: str) -> None:
        """Lets every process execute a job, and waits.

        Raises:
            OSError: a process has ended.
        """
        try:
            for process in self.processes:
                process.stdin.write(f"{job}\n")
                process.stdin.flush()
        except BrokenPipeError:
            pass  # raised below
        if any(process.stdout.readline() != f"{job}\n" for process in self.processes):
            for process in self.processes:
                process.kill()
            raise OSError("a process of the benchmark ended; its error is above")


def run(
    file: str, options: Sequence[str], batch: int, size: tuple[int, int], rounds: int, processes: int
) -> list[dict[str, Any]]:
    """A row for one process, and for several with ``batch`` images each and with ``batch`` in all.

    Raises:
        ValueError: the batch cannot be divided among the processes.
        OSError: a process ended.
    """
    if batch % processes:
        raise ValueError(f"--batch {batch} cannot be divided among {processes} processes; give a multiple of it")
    step.load_pair(file, *options)  # raises its errors here, once
    arguments = [file, str(batch), str(batch // processes), *map(str, size), *options]
    with Team(1, arguments) as one, Team(processes, arguments) as several:
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


def work(arguments: Sequence[str]) -> None:
    """One process of a team: for every line of input, trains a step or all-reduces as many numbers as a step does."""
    parser = argparse.ArgumentParser(description=work.__doc__)
    parser.add_argument("file")
    for number in ("whole", "part", "height", "width"):
        parser.add_argument(number, type=int)
    parser.add_argument("options", nargs="*")
    args = parser.parse_args(arguments)
    world = init_world()
    pinned, size = world.device.type == "cuda", (args.height, args.width)
    batches = {name: step.random_batch(getattr(args, name), size, pinned) for name in ("whole", "part")}
    trainer = step.build(step.load_pair(args.file, *args.options), world)
    trained = sum(parameter.numel() for parameter in trainer.distiller.parameters())
    gradients = torch.zeros(trained, device=world.device)
    for line in sys.stdin:
        job = line.strip()
        if job in batches:
            trainer.train_step([batches[job]])
        else:
            all_reduce_sum(gradients)
        synchronize(world.device)
        print(job, flush=True)
    close_world()


if __name__ == "__main__":
    work(sys.argv[1:])
