"""A frozen teacher's outputs on disk: each is computed once and read whenever its training sample comes again.

A folder holds one file for each kind of map (``logits.f16``, ``stage3.f16``: L C h w float16, in the order of the
stream), one byte for each sample that is 1 if the sample is stored (``done``), and everything that the outputs depend
on (``index.json``).
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.base import SegOutput
from utils.config import changed_values
from utils.console import say
from utils.distributed import World, barrier
from utils.files import LOCK, open_locked, write_atomically

INDEX, DONE = "index.json", "done"
VERSION = 2  # of the format; raise it when older folders can no longer be read
HALF = np.dtype(np.float16)


class KeptTaps(dict[str, Tensor]):
    """The taps of a teacher that the cache keeps; reading another one is an error that names the key to set."""

    def __missing__(self, tap: str) -> Tensor:
        raise ValueError(
            f"the method reads the teacher's tap {tap!r}, and its cache keeps {', '.join(self) or 'none'}: name it in "
            "teacher.cache_taps, and another folder in teacher.cache"
        )


class TeacherCache:
    """A folder with the outputs of a frozen teacher on a stream that repeats after L samples.

    Every rank stores the outputs that it computes and reads what any rank, run or seed has stored. The folder must be
    on a local disk, or on a file system that shows all nodes the same file at once (not NFS). What is stored never
    changes, and a sample counts as stored only when it is safely on the disk, so a run may be stopped at any moment.

    Outputs are rounded to float16: by a relative 2^-11, or an absolute 2^-25 below 2^-14. Reading float32 maps as
    bfloat16 rounds them by 2^-9. This is the only difference to the teacher's own output. bfloat16 maps from 2^-14 on
    are kept exactly. In the tests, HMKD's terms over float32 maps differ by less than a relative 1e-3.

    Args:
        facts: everything that the outputs depend on, in the types of JSON.
        length: L.
        shapes: (C, h, w) of the maps of one sample, by name: taps, and ``'logits'`` unless the teacher has none.
        dtype: of the maps that are read.

    Raises:
        ValueError: the folder holds the outputs of another experiment or is damaged, or the disk has too little room.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, Any],
        length: int,
        shapes: Mapping[str, tuple[int, int, int]],
        dtype: torch.dtype,
        world: World,
    ):
        self.folder, self.shapes, self.length = Path(folder), dict(shapes), length
        self.dtype, self.device = dtype, world.device
        self.record_bytes = {name: prod(shape) * HALF.itemsize for name, shape in shapes.items()} | {DONE: 1}
        if world.is_main:
            # Through JSON, which turns tuples into lists, so that it compares equal to the file.
            self._prepare(json.loads(json.dumps({"version": VERSION, **facts, "length": length, "shapes": shapes})))
        barrier()
        self.files = {name: open(self._path(name), "r+b") for name in self.record_bytes}  # noqa: SIM115 - for the run
        self.done = np.memmap(self._path(DONE), np.uint8, "r")
        self.maps = {
            name: np.memmap(self._path(name), HALF, "r", shape=(length, *shape)) for name, shape in shapes.items()
        }

    def recall(self, positions: Sequence[int] | Tensor) -> SegOutput | None:
        """The output on the samples at B positions, maps B C h w; None if any of them is not stored.

        A position is an index of an array as long as L: 0..L-1, or negative, from the end.
        """
        positions = np.asarray(positions)
        if not self.done[positions].all():
            return None
        maps = {name: self._to_device(stored[positions]) for name, stored in self.maps.items()}
        return SegOutput(maps.pop("logits", None), KeptTaps(maps), None)

    def store(self, positions: Sequence[int] | Tensor, output: SegOutput) -> None:
        """Stores a network's output on the samples at these positions; samples that are stored already do not change.

        Raises:
            ValueError: a map has another shape than expected, or a number that float16 cannot hold.
        """
        missing = {int(position) % self.length: i for i, position in enumerate(positions) if not self.done[position]}
        for name, shape in self.shapes.items():
            values = (output.logits if name == "logits" else output.taps[name]).to("cpu", torch.float16).numpy()
            if values.shape != (len(positions), *shape):
                raise ValueError(
                    f"the teacher's {name} is {values.shape}; expected {(len(positions), *shape)}, from its tap "
                    "and data.crop_size"
                )
            if not np.isfinite(values).all():
                raise ValueError(
                    f"the teacher's {name} holds a number that is not finite or beyond {np.finfo(HALF).max:.0f}, "
                    "float16's largest: train without teacher.cache"
                )
            self._write(name, {position: values[i].tobytes() for position, i in missing.items()})
        self._write(DONE, dict.fromkeys(missing, b"\1"))

    def _prepare(self, facts: dict[str, Any]) -> None:
        """Creates the folder or checks the one that is there; prints its size before anything is written."""
        sample = sum(self.record_bytes.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_locked(self.folder / LOCK, wait=True):  # runs may start at the same time: one creates it
            made = (self.folder / INDEX).is_file()
            if made:
                self._check(facts)
            stored = int(np.fromfile(self._path(DONE), np.uint8).sum()) if made else 0
            say(
                f"{self.folder}: the teacher's outputs on {stored} of {self.length} samples; "
                f"{sample / 2**10:.1f} KiB a sample, {self.length * sample / 2**20:.1f} MiB when all are there"
            )
            needed, free = (self.length - stored) * sample, shutil.disk_usage(self.folder).free
            if needed > free:
                raise ValueError(
                    f"{self.folder} is to grow by {needed / 2**20:.1f} MiB, and its disk has {free / 2**20:.1f} MiB "
                    "free: make room, choose another folder, or lower data.distinct_epochs"
                )
            if not made:
                for name, size in self.record_bytes.items():
                    with open(self._path(name), "wb") as file:
                        file.truncate(self.length * size)
                write_atomically(self.folder / INDEX, (json.dumps(facts, indent=2) + "\n").encode())

    def _check(self, facts: dict[str, Any]) -> None:
        try:
            found = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.folder / INDEX} is damaged ({error}); delete {self.folder}") from error
        if lines := changed_values(found, facts):
            raise ValueError(
                f"{self.folder} holds the outputs of another experiment; choose another folder, or delete this one. "
                "Found -> expected:\n  " + "\n  ".join(lines)
            )
        for name, size in self.record_bytes.items():
            path, expected = self._path(name), self.length * size
            bytes_found = path.stat().st_size if path.is_file() else None
            if bytes_found != expected:
                found = "is missing" if bytes_found is None else f"has {bytes_found} bytes; expected {expected}"
                raise ValueError(f"{path} {found}; delete {self.folder}")

    def _write(self, name: str, records: Mapping[int, bytes]) -> None:
        """Writes records at their positions in a file, and returns when they are on the disk.

        Not through the memory map: on a full disk, writing to it kills the process.
        """
        file = self.files[name]
        for position, record in records.items():
            file.seek(position * len(record))
            file.write(record)
        file.flush()
        os.fsync(file.fileno())

    def _to_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # so that the copy does not wait for the GPU
        return tensor.to(self.device, non_blocking=True).to(self.dtype)

    def _path(self, name: str) -> Path:
        return self.folder / (name if name == DONE else f"{name}.f16")
