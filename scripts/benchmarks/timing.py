"""Times alternatives side by side: round after round, each once, so that a slow moment of the machine hits all."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Of one alternative, in seconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a part of the median."""
        return (self.high - self.low) / (2 * self.median)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_each(
    alternatives: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, Timing]:
    """Runs every alternative once a round and reads the clock around it, the device's queue empty on both sides.

    Args:
        alternatives: by name.
        device: waited for before the clock is read.
        rounds: timed calls of each.
        warmup: calls of each before these.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(warmup + rounds):
        for name, run in alternatives.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: timing(values) for name, values in seconds.items()}


def timing(seconds: list[float]) -> Timing:
    """Median and quartiles (the value itself where there is but one)."""
    if len(seconds) == 1:
        return Timing(*seconds * 3)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that ``run`` adds to what is held before it, at its peak: the allocator's on a GPU, resident on Linux.

    Raises:
        OSError: on a CPU, where the kernel cannot reset a process's peak (it can on Linux).
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must be asked for again
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
