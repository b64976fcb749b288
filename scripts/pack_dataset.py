"""Decodes a config's dataset once into files that training and evaluation read (``data.packed``)."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from configs.schema import Experiment
from datasets.base import SegDataset
from datasets.packed import INDEX, VERSION, PackedDataset, describe, describe_sample, digest, source_digests
from datasets.png import undecodable
from engine.data import build_split
from scripts._command import add_config_options, command_parser
from scripts.preparation.problems import report_problems
from utils.config import load_config
from utils.console import say
from utils.files import user_path, write_atomically

EXAMPLES = """\
examples, from the repository root:
  python scripts/pack_dataset.py configs/hmkd/cityscapes_b4_r18.py --out data/cityscapes_packed
  python scripts/pack_dataset.py configs/hmkd/cityscapes_b4_r18.py --out data/cityscapes_packed --verify
  python train_kd.py configs/hmkd/cityscapes_b4_r18.py --cfg-options data.packed=data/cityscapes_packed
To resume a stopped run, give the same command again.
"""
SHARD = 256 * 2**20  # bytes, unless a single sample is larger


class Packer:
    """Packs one split into a folder, shard by shard.

    Each finished shard has its part of the index beside it, so that a later run can resume. When all shards are
    finished, their parts become the index.

    Args:
        dataset: the split, read from its files.
        folder: of this split.
    """

    def __init__(self, dataset: SegDataset, folder: Path):
        self.dataset, self.folder = dataset, folder
        self.finished = (folder / INDEX).is_file()
        self.samples, self.shards = ([], []) if self.finished else plan(dataset)
        self.todo = [number for number in range(len(self.shards)) if self._read_part(number) is None]

    def size(self, number: int) -> int:
        """Bytes of a shard."""
        return sum(self.samples[index]["bytes"] for index in self.shards[number])

    def run(self) -> None:
        """Writes what is missing."""
        if self.finished:
            return
        for left in self.folder.glob(".*.tmp"):  # from a run that was killed while it wrote
            left.unlink()
        total = sum(len(self.shards[number]) for number in self.todo)
        with tqdm(total=total, desc=self.folder.name, leave=False, disable=None) as bar:
            for number in self.todo:
                self._write(number, bar)
        numbers = range(len(self.shards))
        index = {
            "version": VERSION, **describe(self.dataset), "palette": self.dataset.palette.tolist(),
            "shards": [{"file": self._shard(number).name, "bytes": self.size(number)} for number in numbers],
            "samples": [sample for number in numbers for sample in self._read_part(number)],
        }  # fmt: skip
        write_atomically(self.folder / INDEX, json.dumps(index, indent=1).encode())
        for number in numbers:
            self._part(number).unlink()

    def problems(self, sources: bool) -> list[str]:
        """Reads the whole packed split; what is wrong with it.

        Args:
            sources: also compare the files from which it was packed.

        Raises:
            FileNotFoundError, ValueError: as ``PackedDataset``.
        """
        packed = PackedDataset(self.dataset, self.folder)
        bar = tqdm(range(len(packed)), f"verifying {self.folder.name}", leave=False, disable=None)
        return [problem for problem in (packed.find_damage(index, sources) for index in bar) if problem is not None]

    def _write(self, number: int, bar: tqdm) -> None:
        content, samples = bytearray(), []
        for index in self.shards[number]:
            image, label = self.dataset.load(index)
            pixels = image.tobytes() + (b"" if self.dataset.files[index][1] is None else label.tobytes())
            content += pixels
            hashes = {"sha256": digest(pixels), "source_sha256": source_digests(self.dataset, index)}
            samples.append(self.samples[index] | hashes)
            bar.update()
        write_atomically(self._shard(number), content)
        write_atomically(self._part(number), json.dumps({**describe(self.dataset), "samples": samples}).encode())

    def _read_part(self, number: int) -> list[dict[str, Any]] | None:
        """The index of a shard, if the shard is complete and has the samples of this dataset; else None."""
        shard, part = self._shard(number), self._part(number)
        if not (part.is_file() and shard.is_file() and shard.stat().st_size == self.size(number)):
            return None
        found = json.loads(part.read_text(encoding="utf-8"))
        samples = found.pop("samples")
        planned = [self.samples[index] for index in self.shards[number]]
        same = [{key: sample[key] for key in planned[0]} for sample in samples] == planned
        return samples if same and found == describe(self.dataset) else None

    def _shard(self, number: int) -> Path:
        return self.folder / f"{number:05}.bin"

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"


def plan(dataset: SegDataset) -> tuple[list[dict[str, Any]], list[range]]:
    """The index entry of each sample as far as it is known before decoding, and the samples of each shard.

    Raises:
        ValueError: a file is not an image, or is too large.
    """
    samples: list[dict[str, Any]] = []
    shards, first, offset = [], 0, 0
    for index, (image, label) in enumerate(dataset.files):
        try:
            with Image.open(image) as picture:
                width, height = picture.size
        except Exception as error:  # Pillow raises many types
            raise undecodable(image, error) from error
        size = height * width * (3 if label is None else 4)
        if offset and offset + size > SHARD:
            shards.append(range(first, index))
            first, offset = index, 0
        place = {"size": [height, width], "shard": len(shards), "offset": offset, "bytes": size}
        samples.append(describe_sample(dataset, index) | place)
        offset += size
    return samples, [*shards, range(first, len(dataset))]


def pack(packers: Sequence[Packer]) -> None:
    """Prints the size of the result, and writes it if the disk has enough space.

    Raises:
        OSError: the disk has not enough space.
    """
    missing = 0
    for packer in packers:
        total, todo = (sum(map(packer.size, shards)) for shards in (range(len(packer.shards)), packer.todo))
        state = "packed already" if packer.finished else f"{_size(total)}, of which {_size(todo)} are missing"
        say(f"{packer.folder}: {len(packer.dataset)} samples, {state}")
        missing += todo
    for packer in packers:
        packer.folder.mkdir(parents=True, exist_ok=True)
    folder = packers[0].folder.parent
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise OSError(
            f"{folder} has {_size(free)} free, but {_size(missing)} are needed; free space, or choose another --out"
        )
    for packer in packers:
        packer.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if the packed dataset is correct, 1 if it is not or could not be written."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("config", help="config whose data section is packed")
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="DIR", help="folder; each split gets a subfolder"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "val", "test", "unlabelled"), default=["train", "val"])
    parser.add_argument(
        "--verify", action="store_true", help="write nothing; compare the packed samples with the current files"
    )
    add_config_options(parser)
    args = parser.parse_args(arguments)
    try:
        config = load_config(args.config, Experiment, [*args.cfg_options, "data.packed=None"])
        packers = [Packer(build_split(config, args.config, split), args.out / split) for split in args.splits]
        if not args.verify:
            pack(packers)
        problems = [problem for packer in packers for problem in packer.problems(sources=args.verify)]
    except (ValueError, OSError) as error:
        problems = [str(error)]
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes after the last finished shard")
    if not problems:
        say(f"{args.out}: {', '.join(args.splits)} verified; read it by data.packed={str(args.out)!r}")
    return report_problems(problems)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    sys.exit(main())
