"""Times alternatives in turns, each once a round, so that a slow moment of the machine affects all of them."""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Timing(NamedTuple):
    """Seconds of one alternative."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, divided by the median."""
        return (self.high - self.low) / (2 * self.median)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of_each(
    alternatives: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Runs every alternative once a round and measures its time, with the device idle before and after.

    Returns:
        The seconds of every timed call after ``warmup`` calls, by ``clock`` or else ``time.perf_counter``.
    """
    clock = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(warmup + rounds):
        for name, run in alternatives.items():
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if number >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def time_each(
    alternatives: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, Timing]:
    """Median and quartiles of :func:`seconds_of_each`."""
    return {name: timing(each) for name, each in seconds_of_each(alternatives, device, rounds, warmup).items()}


def timing(seconds: list[float]) -> Timing:
    """Median and quartiles; one value is all three."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, low, high)


def compare(
    what: str,
    alternatives: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    note: str,
    images: int = 1,
) -> dict[str, Any]:
    """The row of ``'ours'`` and ``'published'``: seconds an image of ``images`` in a call, and the peak memory."""
    times = time_each(alternatives, device, rounds, warmup=1)
    memory = {name: peak_memory(call, device) for name, call in alternatives.items()}
    return {
        "what": what, "ours": times["ours"].median / images, "published": times["published"].median / images,
        "ratio": times["published"].median / times["ours"].median, "spread": times["ours"].spread,
        "memory": memory["ours"], "memory_published": memory["published"],
        "note": f"{note}; peak {memory['ours'] / 2**20:.0f} MiB against {memory['published'] / 2**20:.0f}",
    }  # fmt: skip


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """Bytes that ``run`` needs at its peak, beyond those in use before.

    They are the allocator's with CUDA and the process's resident ones on the CPU of Linux, nan elsewhere.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return math.nan
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back, so that using it again counts
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
