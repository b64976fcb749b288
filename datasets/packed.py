"""A data set decoded once into files of raw pixels, of which a training sample reads only the rows of its crop.

A folder holds one split: shards with the image (H W 3 uint8 RGB) and then the label (H W uint8 train ids) of each
sample, and an index of their places. ``scripts/pack_dataset.py`` writes it.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from datasets.base import SegDataset
from datasets.ids import UNKNOWN

INDEX = "index.json"
VERSION = 1  # of the format; increase it when older folders can no longer be read


class Sample(BaseModel):
    """One sample in the index; ``source`` are its image and label files, ``size`` is (H, W)."""

    name: str
    source: list[str]
    source_bytes: list[int]
    source_sha256: list[str]
    sha256: str
    size: tuple[PositiveInt, PositiveInt]
    shard: NonNegativeInt
    offset: NonNegativeInt
    bytes: int


class Shard(BaseModel):
    file: str
    bytes: int


class Index(BaseModel):
    """All that the index holds; ``ids`` and ``colors`` are the values in the label files, each with its class last."""

    version: Literal[VERSION]
    class_names: list[str]
    ids: list[list[int]]
    colors: list[list[int]] | None = None  # None: no label needed them, or an older release packed the folder
    image_range: list[float] | None = None  # None: no image needed it
    palette: list[list[int]]
    shards: list[Shard]
    samples: list[Sample]


class PackedDataset(SegDataset):
    """A data set whose pixels are read from a packed folder: the same samples, names and classes, in the same order.

    Args:
        source: the data set as files, of which only the sizes are read.
        folder: of one split.

    Raises:
        FileNotFoundError: the index or a shard is missing.
        ValueError: the folder has another format version, other samples or other classes, or is damaged; or the size of
            a file of ``source`` has changed.
    """

    def __init__(self, source: SegDataset, folder: str | Path):
        vars(self).update(vars(source))
        self.folder = Path(folder)
        index = _read_index(self.folder)
        for key, value in describe(source).items():
            if index[key] is not None:
                self._expect(f"{key} in {INDEX}", index[key], value)
        self._samples, self._shards = index["samples"], index["shards"]
        self._expect(f"number of samples in {INDEX}", len(self._samples), len(source))
        for number, sample in enumerate(self._samples):
            expected = describe_sample(source, number)
            self._expect(f"sample {number} in {INDEX}", {key: sample[key] for key in expected}, expected)
            channels, shard = 3 if source.files[number][1] is None else 4, sample["shard"]
            self._expect(f"bytes of sample {number} in {INDEX}", sample["bytes"], channels * math.prod(sample["size"]))
            room = self._shards[shard]["bytes"] - sample["bytes"] if shard < len(self._shards) else -1
            self._expect(f"sample {number} in {INDEX} is inside its shard", sample["offset"] <= room, True)
        for shard in self._shards:
            path = self.folder / shard["file"]
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; {_how_to_pack(self.folder)}")
            self._expect(f"size of {shard['file']} in bytes", path.stat().st_size, shard["bytes"])
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped files, which every process opens itself."""
        return vars(self) | {"_maps": {}}

    def open_image(self, index: int) -> np.ndarray:
        height, width = self._samples[index]["size"]
        return self._pixels(index)[: 3 * height * width].reshape(height, width, 3)

    def load_label(self, index: int) -> np.ndarray | None:
        if self.files[index][1] is None:
            return None
        height, width = self._samples[index]["size"]
        return self._pixels(index)[3 * height * width :].reshape(height, width)

    def find_damage(self, index: int, sources: bool) -> str | None:
        """Reads a sample completely, with ``sources`` also its files; what is wrong with it, or None."""
        sample = self._samples[index]
        if digest(self._pixels(index)) != sample["sha256"]:
            shard = self.folder / self._shards[sample["shard"]]["file"]
            changed = f"the pixels of {self.names[index]} have changed since they were packed"
            return f"{shard}: {changed}; {_how_to_pack(self.folder)}"
        if sources and source_digests(self, index) != sample["source_sha256"]:
            files = " or ".join(str(path) for path in self.files[index] if path is not None)
            return f"{files} has changed since it was packed; {_how_to_pack(self.folder)}"
        return None

    def _pixels(self, index: int) -> np.ndarray:
        """The bytes of a sample in its mapped file, image and then label, read-only."""
        sample = self._samples[index]
        shard, start = sample["shard"], sample["offset"]
        if shard not in self._maps:
            self._maps[shard] = np.asarray(np.memmap(self.folder / self._shards[shard]["file"], np.uint8, "r"))
        return self._maps[shard][start : start + sample["bytes"]]

    def _expect(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise ValueError(f"{self.folder}: {what}: {found}; expected {expected}; {_how_to_pack(self.folder)}")


def describe(dataset: SegDataset) -> dict[str, Any]:
    """How the files are read: names of the classes, values in a label file with their class, range of the images."""
    return {
        "class_names": list(dataset.class_names),
        "ids": [[raw, train] for raw, train in enumerate(dataset.id_table.tolist()) if train != UNKNOWN],
        "colors": dataset.colors and [[*color, train] for color, train in dataset.colors.items()],
        "image_range": dataset.image_range and list(dataset.image_range),
    }


def describe_sample(dataset: SegDataset, index: int) -> dict[str, Any]:
    """Name and files of a sample, with the sizes in bytes, which show a change without reading the files."""
    files = [path for path in dataset.files[index] if path is not None]
    return {
        "name": dataset.names[index],
        "source": [path.relative_to(dataset.root).as_posix() for path in files],
        "source_bytes": [path.stat().st_size for path in files],
    }


def source_digests(dataset: SegDataset, index: int) -> list[str]:
    """SHA-256 of a sample's files."""
    return [digest(path.read_bytes()) for path in dataset.files[index] if path is not None]


def digest(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not packed, or not completely; {_how_to_pack(folder)}")
    try:
        return Index.model_validate_json(path.read_bytes(), strict=True).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "JSON"
        raise ValueError(
            f"{path} is not an index of format version {VERSION} ({key}: {first['msg']}); {_how_to_pack(folder)}"
        ) from error


def _how_to_pack(folder: Path) -> str:
    return (
        f"(delete {folder} if it is there and) run python scripts/pack_dataset.py CONFIG --out {folder.parent} "
        f"--splits {folder.name}"
    )
