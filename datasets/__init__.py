"""Data sets by name, and the loaders that feed them to the networks."""

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path

import cv2
from torch.utils.data import DataLoader, Dataset

from datasets.base import SegDataset
from datasets.camvid import CamVid
from datasets.cityscapes import Cityscapes
from datasets.listed import ListedDataset

DATASETS = {"cityscapes": Cityscapes, "camvid": CamVid, "list": ListedDataset}


def build_dataset(type: str, root: str | Path, list_file: str | Path, **options) -> SegDataset:  # noqa: A002
    """Builds a data set by its name.

    Args:
        type: a key of ``DATASETS``.
        root: folder of the data set.
        list_file: list of ``image label`` lines, relative to ``root`` or absolute.
        **options: what that data set takes besides (``list``: class_names, palette, id_table).

    Raises:
        ValueError: unknown ``type``; and as the data set itself.
    """
    if type not in DATASETS:
        near = difflib.get_close_matches(str(type), DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data set type {type!r}; expected one of {', '.join(DATASETS)}{hint}")
    return DATASETS[type](root, list_file, **options)


def make_loader(
    data: Dataset,
    *,
    batch_sampler: Iterable[list[int]] | None = None,
    indices: Iterable[int] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Loads batches (training) or single samples (evaluation, where sizes may differ).

    Args:
        data: a ``TrainStream`` or a ``SegDataset``.
        batch_sampler: lists of positions; gives ``image`` B 3 h w uint8, ``label`` B h w uint8, ``name`` list of B.
        indices: sample numbers; gives ``image`` 3 H W uint8, ``label`` H W uint8, ``name``, unbatched.
        workers: processes that load ahead; 0 loads in this one.
        pin_memory: page-locked tensors, for asynchronous copies to a GPU.

    Raises:
        ValueError: not exactly one of ``batch_sampler`` and ``indices`` is given.
    """
    if (batch_sampler is None) == (indices is None):
        raise ValueError("make_loader takes either batch_sampler (training) or indices (evaluation)")
    shared = {"num_workers": workers, "pin_memory": pin_memory, "worker_init_fn": _start_worker}
    if indices is not None:
        return DataLoader(data, sampler=indices, batch_size=None, **shared)
    return DataLoader(data, batch_sampler=batch_sampler, **shared)


def _start_worker(_: int) -> None:
    """The workers are the parallelism: OpenCV's own threads in each of them would only contend for the cores.

    Ctrl-C and a scheduler's SIGTERM reach every process of a job. What to do about them is the main process's business:
    it finishes its step first, for which it needs its workers.
    """
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
