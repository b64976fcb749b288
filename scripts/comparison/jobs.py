"""Runs commands in parallel, each on its own GPU; only one process at a time may do so in a folder."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from utils.console import say
from utils.files import LOCK, open_locked


class Job(NamedTuple):
    """One command. It is finished when ``result`` exists; its output is added to ``log``.

    ``look`` gives the share of the work that is done (0..1), and what was found so far, to print.
    """

    name: str
    command: list[str]
    result: Path
    log: Path
    look: Callable[[], tuple[float, str]] = lambda: (0.0, "")


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Locks a folder and returns the lock's descriptor; a child that inherits it has the lock too, until it ends.

    Raises:
        ValueError: it is a file; or another comparison, or a run of a killed comparison, works there.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file; expected a folder (it is created if missing)")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = open_locked(folder / LOCK, inherited=True)
    except BlockingIOError:
        raise ValueError(
            f"{folder}: another comparison, or a run of a killed one, works in this folder; wait for its end, or "
            "choose another --out"
        ) from None
    with file:
        yield file.fileno()


def visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def run_jobs(jobs: Sequence[Job], at_once: int, lock: int) -> None:
    """Runs the unfinished jobs, ``at_once`` at a time, each on one GPU where there are any.

    A failed job does not stop the others. When this process is stopped, it sends SIGTERM to the running jobs, which
    lets them save, and waits for them.

    Raises:
        ValueError: some failed; the message has the last line of each.
    """
    waiting, running, failed, gpus = [job for job in jobs if not job.result.is_file()], {}, [], visible_gpus()
    free, total, looked = list(range(at_once)), len(waiting), 0.0

    def share() -> float:
        """How many jobs are done, with the parts of those that are not."""
        unfinished = [*waiting, *(job for job, _ in running.values())]
        return total - len(unfinished) + sum(job.look()[0] for job in unfinished)

    bar = tqdm(
        desc="runs", total=total, initial=share(), smoothing=0, leave=False, disable=None if waiting else True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} [{elapsed}, {remaining} left{postfix}]",
    )  # fmt: skip
    try:
        while waiting or running:
            while waiting and free:
                job, slot = waiting.pop(0), free.pop(0)
                say(f"{job.name}: started ({total - len(waiting)} of {total}), log in {job.log}")
                device = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
                job.log.parent.mkdir(parents=True, exist_ok=True)
                with open(job.log, "a") as log:
                    inherited = [] if os.name == "nt" else [lock]  # Windows has no lock
                    process = subprocess.Popen(
                        job.command, stdout=log, stderr=log, env={**os.environ, **device}, pass_fds=inherited
                    )
                running[process] = job, slot
            time.sleep(0.1)
            if not bar.disable and time.monotonic() > looked + 1:
                looked = time.monotonic()
                bar.update(share() - bar.n)
            for process in [each for each in running if each.poll() is not None]:
                job, slot = running.pop(process)
                free.append(slot)
                if process.returncode:
                    lines = job.log.read_text().strip().splitlines()
                    failed.append(
                        f"{job.name}: {lines[-1] if lines else f'exit code {process.returncode}'} ({job.log})"
                    )
                    say(f"failed: {failed[-1]}")
                else:
                    found = f"{job.name}: done{job.look()[1]}"
                    bar.set_postfix_str(found)
                    say(found)
    finally:
        bar.close()
        if running:
            say(f"stopping {len(running)} run(s); those in training save first")
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        raise ValueError(
            f"{len(failed)} of {total} failed; fix the cause and run the same command again:\n  " + "\n  ".join(failed)
        )
