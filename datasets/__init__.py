"""Data sets by name, and the loaders that feed them to the networks."""

import signal
from collections.abc import Iterable
from pathlib import Path

import cv2
from torch.utils.data import DataLoader

from datasets import camvid, cityscapes, listed  # noqa: F401  (each registers its data set)
from datasets.base import DATASETS, SegDataset, TrainStream
from datasets.packed import PackedDataset

GRACE = 30  # seconds that a worker lives on after SIGTERM


def build_dataset(
    type: str,  # noqa: A002
    root: str | Path,
    list_file: str | Path,
    packed: str | Path | None = None,
    check_files: bool = True,
    **options,
) -> SegDataset:
    """Builds a data set by its name.

    Args:
        type: a name in ``DATASETS``.
        root: folder of the data set.
        list_file: list of ``image label`` lines, relative to ``root`` or absolute.
        packed: folder of the same samples decoded, to read their pixels from.
        check_files: refuse a list of which a file is missing.
        **options: what that data set takes besides (``list``: class_names, palette, id_table).

    Raises:
        FileNotFoundError: a listed file is missing; and as the data set itself.
        ValueError: unknown ``type``; and as the data set itself.
    """
    dataset = DATASETS[type](root, list_file, **options)
    if check_files and (missing := dataset.missing_files()):
        named = ", ".join(str(path.relative_to(dataset.root)) for path in missing[:10])
        raise FileNotFoundError(
            f"{len(missing)} of the files that {dataset.root / list_file} lists are missing under {dataset.root}, or "
            f"are links that lead nowhere: {named}{' ...' if len(missing) > 10 else ''}; put them there or remove "
            "their lines (scripts/prepare_lists.py --config names each)"
        )
    return dataset if packed is None else PackedDataset(dataset, packed)


def make_loader(
    stream: TrainStream,
    batches: Iterable[list[int]],
    *,
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = 0,
) -> DataLoader:
    """Loads micro-batches: dicts of ``image`` B 3 h w uint8, ``label`` B h w uint8, ``name`` and ``skipped``, lists of
    B, and ``position``, B int64.

    Args:
        stream: the samples by position.
        batches: lists of positions, as ``PositionBatches`` gives them.
        workers: processes that load ahead; 0 loads in this one.
        pin_memory: page-locked tensors, for asynchronous copies to a GPU.
        timeout: seconds to wait for a worker's batch before it is an error; 0 waits for ever.
    """
    return DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0,
        worker_init_fn=start_worker,
    )


def start_worker(_: int) -> None:
    """The workers are the parallelism: OpenCV's own threads in each of them would only contend for the cores.

    Ctrl-C and a scheduler's SIGTERM or SIGUSR1 reach every process of a job. What to do about them is the main
    process's business: it finishes its step first, for which it needs its workers. One that was told to terminate does
    so a while later.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
