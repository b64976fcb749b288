"""Data sets by name, and the loaders that feed them to the networks."""

import multiprocessing
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import DataLoader

from datasets import camvid, cityscapes, field, listed  # each registers its data set
from datasets.base import DATASETS, SegDataset
from datasets.packed import PackedDataset
from datasets.stream import JointStream
from utils.names import name_some

GRACE = 30  # seconds from SIGTERM to the end of a worker


def build_dataset(
    type: str,  # noqa: A002
    root: str | Path,
    list_file: str | Path,
    packed: str | Path | None = None,
    check_files: bool = True,
    image_range: tuple[float, float] | None = None,
    **options,
) -> SegDataset:
    """Builds a data set by its name.

    Args:
        type: a name in ``DATASETS``.
        list_file: list of ``image label`` lines, relative to ``root`` or absolute.
        packed: folder of the packed data set, from which the pixels are read instead.
        check_files: raise an error if a listed file is missing.
        image_range: (low, high), the values that are black and white in images with 16 bits a channel; None: such
            images are errors.
        **options: further arguments of that data set (``list``: class_names, palette, id_table, color_table).

    Raises:
        FileNotFoundError: a listed file is missing, or an error of the data set itself.
        ValueError: ``type`` is unknown, or an error of the data set itself.
    """
    dataset = DATASETS[type](root, list_file, **options)
    dataset.image_range = image_range
    if check_files and (missing := dataset.missing_files()):
        named = name_some([str(path.relative_to(dataset.root)) for path in missing], 10)
        raise FileNotFoundError(
            f"{len(missing)} of the files in {dataset.root / list_file} are missing under {dataset.root}, or are "
            f"broken links: {named}; put them there or remove their lines "
            "(scripts/prepare_lists.py --config names each)"
        )
    return dataset if packed is None else PackedDataset(dataset, packed)


def make_loader(
    stream: JointStream, batches: Iterable[list[int]], *, workers: int = 0, pin_memory: bool = False, timeout: float = 0
) -> DataLoader:
    """Loads micro-batches: dicts of ``image`` B 3 h w uint8, ``label`` B h w uint8, ``position`` B int64 (negative
    for a sample without a label), ``name`` and ``skipped``, lists of B.

    ``batches`` are lists of positions, from ``PositionBatches``. ``workers`` processes load ahead, and have ``timeout``
    seconds for a batch (0: no limit).
    """
    return DataLoader(stream, batch_sampler=batches, pin_memory=pin_memory, **worker_options(workers, timeout))


def worker_options(workers: int, timeout: float) -> dict[str, Any]:
    """Arguments of a ``DataLoader`` with this many processes, each of which has ``timeout`` seconds for a batch.

    Raises:
        OSError: this machine has no shared memory for them.
    """
    if workers == 0:
        return {}
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise OSError(
            f"data.workers is {workers}, and these processes cannot be started, because shared memory cannot be used "
            f"({error.strerror or error}; on Linux it is /dev/shm): set data.workers=0, or make it writable"
        ) from error
    return {"num_workers": workers, "timeout": timeout, "worker_init_fn": start_worker}


def start_worker(_: int) -> None:
    """Prepares a worker of a loader: no threads of OpenCV (the workers are the parallelism), and its own signals.

    Ctrl-C and a scheduler's SIGTERM or SIGUSR1 reach every process of a job. Only the main process reacts to them: it
    finishes its step first and needs its workers for that. So a worker ignores them, and ends ``GRACE`` seconds after
    SIGTERM.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "nt":  # has no SIGUSR1 and no alarm
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
