"""A frozen teacher's outputs on disk: what it says of a training sample once is read whenever the sample comes again.

A folder holds one file a kind of map (``logits.f16``, ``stage3.f16``: L C h w float16, in the order of the stream), a
byte a sample that tells whether it is there (``done``), and all that the outputs follow from (``index.json``).
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.config import changed_values
from utils.console import say
from utils.distributed import World, barrier
from utils.files import LOCK, open_locked, write_atomically

INDEX, DONE = "index.json", "done"
VERSION = 1  # of the format; raise it when older folders can no longer be read
HALF = np.dtype(np.float16)


class KeptTaps(dict[str, Tensor]):
    """A teacher's taps, as far as the cache keeps them."""

    def __missing__(self, tap: str) -> Tensor:
        raise ValueError(
            f"the method reads the teacher's tap {tap!r}, and its cache keeps {', '.join(self) or 'none'}: name it in "
            "teacher.cache_taps, and another folder in teacher.cache"
        )


class TeacherCache:
    """The outputs of a frozen teacher on a stream that repeats after L samples, in a folder.

    Every rank stores what it runs the teacher on and reads what any rank, run or seed has stored: the folder lies on a
    disk of this machine, or on a file system that shows all nodes the same file at once (not on NFS). What is
    stored stays as it is, and a sample counts as stored only when it is safely on the disk: a run may be stopped at any
    moment. Float16 rounds to a relative 2^-11 (an absolute 2^-25 below 2^-14), bfloat16, where it is what maps are read
    as, float32 ones to 2^-9: this is all that an output read differs in from the teacher's. A bfloat16 map is kept as
    it is from 2^-14 on; HMKD's terms over float32 maps differ by less than a relative 1e-3 in the tests.

    Args:
        folder: made where it is missing.
        facts: all that the outputs follow from, in JSON's types.
        length: L.
        shapes: (C, h, w) of one sample's maps: ``'logits'``, then taps by name.
        make_output: (logits, taps, None) -> what a network gives.
        dtype: to read maps as.
        world: this process, the device it computes on, and its peers.

    Raises:
        ValueError: the folder holds the outputs of another experiment or is damaged, or the disk has not the room.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, Any],
        length: int,
        shapes: Mapping[str, tuple[int, int, int]],
        make_output: Callable[[Tensor, dict[str, Tensor], None], Any],
        dtype: torch.dtype,
        world: World,
    ):
        self.folder, self.shapes, self.length = Path(folder), dict(shapes), length
        self.make_output, self.dtype, self.device = make_output, dtype, world.device
        self.record_bytes = {name: prod(shape) * HALF.itemsize for name, shape in shapes.items()} | {DONE: 1}
        if world.is_main:
            # As JSON gives it back: tuples are lists there.
            self._prepare(json.loads(json.dumps({"version": VERSION, **facts, "length": length, "shapes": shapes})))
        barrier()
        self.files = {name: open(self._path(name), "r+b") for name in self.record_bytes}  # noqa: SIM115 - for the run
        self.done = np.memmap(self._path(DONE), np.uint8, "r")
        self.maps = {
            name: np.memmap(self._path(name), HALF, "r", shape=(length, *shape)) for name, shape in shapes.items()
        }

    def recall(self, positions: Sequence[int] | Tensor) -> Any | None:
        """The output on the samples at B positions of 0..L-1, maps B C h w; None if one of them is not stored."""
        positions = np.asarray(positions)
        if not self.done[positions].all():
            return None
        maps = {name: self._to_device(stored[positions]) for name, stored in self.maps.items()}
        return self.make_output(maps.pop("logits"), KeptTaps(maps), None)

    def store(self, positions: Sequence[int] | Tensor, output: Any) -> None:
        """Keeps a network's output on the samples at these positions; what is there already stays as it is.

        Raises:
            ValueError: a map is not of the shape expected, or holds a number that float16 cannot.
        """
        missing = {int(position): i for i, position in enumerate(positions) if not self.done[position]}
        for name, shape in self.shapes.items():
            values = (output.logits if name == "logits" else output.taps[name]).to("cpu", torch.float16).numpy()
            if values.shape != (len(positions), *shape):
                raise ValueError(
                    f"the teacher's {name} is {values.shape}; expected {(len(positions), *shape)}, as its tap and "
                    "data.crop_size say"
                )
            if not np.isfinite(values).all():
                raise ValueError(
                    f"the teacher's {name} holds a number that is not finite or beyond {np.finfo(HALF).max:.0f}, "
                    "float16's largest: train without teacher.cache"
                )
            self._write(name, {position: values[i].tobytes() for position, i in missing.items()})
        self._write(DONE, dict.fromkeys(missing, b"\1"))

    def _prepare(self, facts: dict[str, Any]) -> None:
        """Makes the folder, or finds in it what is expected; says how large it is before anything is written."""
        sample = sum(self.record_bytes.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_locked(self.folder / LOCK, wait=True):  # of runs that start side by side one makes it
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
        """Writes records to their places in a file, and returns when they are on the disk.

        Not through the mapped file: that answers a full disk by killing the process.
        """
        file = self.files[name]
        for position, record in records.items():
            file.seek(position * len(record))
            file.write(record)
        file.flush()
        os.fdatasync(file.fileno())

    def _to_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # so that the copy waits for nothing that the GPU has in hand
        return tensor.to(self.device, non_blocking=True).to(self.dtype)

    def _path(self, name: str) -> Path:
        return self.folder / (name if name == DONE else f"{name}.f16")
