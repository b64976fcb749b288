"""A data set decoded once, into files of raw pixels of which a training sample reads only the rows of its crop.

A folder holds one split: shards, in which each sample is its image (H W 3 uint8 RGB) and then its label (H W uint8
train ids), and an index that says what lies where. ``scripts/pack_dataset.py`` writes it.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import UNKNOWN, SegDataset

INDEX = "index.json"
SAMPLE = {
    "name": str, "source": [str], "source_bytes": [int], "source_sha256": [str],
    "sha256": str, "size": [int], "shard": int, "offset": int, "bytes": int,
}  # fmt: skip
# Types of all that the index holds; a list has any number of the one entry.
STRUCTURE = {
    "version": int, "class_names": [str], "ids": [[int]], "palette": [[int]],
    "shards": [{"file": str, "bytes": int}], "samples": [SAMPLE],
}  # fmt: skip
VERSION = 1  # of the format; raise it when older folders can no longer be read


class PackedDataset(SegDataset):
    """A data set with its pixels read from a packed folder: the same samples, names and classes, in the same order.

    Args:
        source: the data set as files, whose sizes alone are looked at.
        folder: of one split.

    Raises:
        FileNotFoundError: the index or a shard is missing.
        ValueError: the folder is of another format version, holds other samples or classes, or is damaged; or the size
            of a file of ``source`` has changed.
    """

    def __init__(self, source: SegDataset, folder: str | Path):
        vars(self).update(vars(source))
        self.folder = Path(folder)
        index = _read_index(self.folder)
        for key, value in describe(source).items():
            self._expect(f"{key} in {INDEX}", index[key], value)
        self._samples, self._shards = index["samples"], index["shards"]
        self._expect(f"number of samples in {INDEX}", len(self._samples), len(source))
        for number, sample in enumerate(self._samples):
            expected = describe_sample(source, number)
            self._expect(f"sample {number} in {INDEX}", {key: sample[key] for key in expected}, expected)
            self._expect(f"place of sample {number} in {INDEX}", self._place_is_sound(number), True)
        for shard in self._shards:
            path = self.folder / shard["file"]
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; {_how_to_pack(self.folder)}")
            self._expect(f"size of {shard['file']} in bytes", path.stat().st_size, shard["bytes"])
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped files: every process opens them itself."""
        return vars(self) | {"_maps": {}}

    def open_image(self, index: int) -> np.ndarray:
        height, width = self._samples[index]["size"]
        return self._pixels(index)[: 3 * height * width].reshape(height, width, 3)

    def load_label(self, index: int) -> np.ndarray | None:
        if self.files[index][1] is None:
            return None
        height, width = self._samples[index]["size"]
        return self._pixels(index)[3 * height * width :].reshape(height, width)

    def damage(self, index: int, sources: bool) -> str | None:
        """What is wrong with a sample that only reading all of it tells, or None.

        Args:
            index: of the sample.
            sources: also compare the files that it was packed from.
        """
        sample = self._samples[index]
        if digest(self._pixels(index)) != sample["sha256"]:
            shard = self.folder / self._shards[sample["shard"]]["file"]
            return f"{shard}: the pixels of {self.names[index]} are not those packed; {_how_to_pack(self.folder)}"
        if sources and source_digests(self, index) != sample["source_sha256"]:
            files = " or ".join(str(path) for path in self.files[index] if path is not None)
            return f"{files} has changed since it was packed; {_how_to_pack(self.folder)}"
        return None

    def _place_is_sound(self, index: int) -> bool:
        """Whether a sample's bytes are as many as its pixels need, and lie within a shard."""
        sample, channels = self._samples[index], 3 if self.files[index][1] is None else 4
        return (
            len(sample["size"]) == 2
            and min(sample["size"]) > 0
            and sample["bytes"] == channels * math.prod(sample["size"])
            and 0 <= sample["shard"] < len(self._shards)
            and 0 <= sample["offset"] <= self._shards[sample["shard"]]["bytes"] - sample["bytes"]
        )

    def _pixels(self, index: int) -> np.ndarray:
        """The bytes of a sample in its mapped file: image, then label. They cannot be written to."""
        sample = self._samples[index]
        shard, start = sample["shard"], sample["offset"]
        if shard not in self._maps:
            self._maps[shard] = np.asarray(np.memmap(self.folder / self._shards[shard]["file"], np.uint8, "r"))
        return self._maps[shard][start : start + sample["bytes"]]

    def _expect(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise ValueError(f"{self.folder}: {what}: {found}; expected {expected}; {_how_to_pack(self.folder)}")


def describe(dataset: SegDataset) -> dict[str, Any]:
    """What the values of labels mean: names of the classes, and (value in a file, class) of all values."""
    ids = [[raw, train] for raw, train in enumerate(dataset.id_table.tolist()) if train != UNKNOWN]
    return {"class_names": list(dataset.class_names), "ids": ids}


def describe_sample(dataset: SegDataset, index: int) -> dict[str, Any]:
    """Name and files of a sample, with what shows a change of these without reading them: their sizes in bytes."""
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
        raise FileNotFoundError(f"{path} is missing: not packed, or not to the end; {_how_to_pack(folder)}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["version"]
        if version == VERSION:
            index = {key: _typed(key, index[key], types) for key, types in STRUCTURE.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of a packed data set ({error!r}); {_how_to_pack(folder)}") from error
    if version != VERSION:
        raise ValueError(f"{path} is of format version {version}; expected {VERSION}; {_how_to_pack(folder)}")
    return index


def _typed(name: str, value: Any, types: Any) -> Any:
    """``value``, as ``json`` gives it.

    Raises:
        KeyError: something is missing.
        TypeError: it, or something in it, has not the type that it should have.
    """
    wanted = types if isinstance(types, type) else type(types)
    if type(value) is not wanted:
        raise TypeError(f"{name} holds {str(value)[:80]!r}; expected {wanted.__name__}")
    if wanted is dict:
        return {key: _typed(f"{name}.{key}", value[key], entry) for key, entry in types.items()}
    return [_typed(name, entry, types[0]) for entry in value] if wanted is list else value


def _how_to_pack(folder: Path) -> str:
    return (
        f"(delete {folder} if it is there and) run python scripts/pack_dataset.py CONFIG --out {folder.parent} "
        f"--splits {folder.name}"
    )
