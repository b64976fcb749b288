"""Evaluates a network on a whole data set, which the ranks divide among them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from datasets import worker_options
from datasets.base import SegDataset
from engine.metrics import ConfusionMatrix, SegMetrics
from engine.sharding import keep_gathering
from models.inference import Size, predict
from models.sizes import size_errors
from utils.distributed import World, all_reduce_sum


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    mode: str = "whole",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: Size | None = None,
    stride: Size | None = None,
    workers: int = 0,
    timeout: float = 0,
    on_sample: Callable[[str, Tensor, Tensor, Tensor], None] | None = None,
    progress: bool = True,
    description: str = "",
) -> SegMetrics:
    """Metrics of a network over a dataset, exact for any number of processes.

    Rank r of n takes the samples r, r + n, ..., so each sample is seen exactly once. Images go through one at a
    time, so their sizes may differ. The counts are summed over the ranks at the end, and every rank returns the same
    metrics. The network's modes and the global random state do not change.

    Args:
        model: on ``device``, not wrapped by DDP; every rank has the same weights, or a part of them
            (``engine.sharding``).
        dataset: has ``num_classes`` and ``len()``; ``[i]`` is a dict of ``image`` 3 H W uint8, ``label`` H W uint8 with
            255 = void, and ``name``.
        autocast_dtype: bfloat16 or float16 for mixed precision; None for none.
        mode, scales, flip, crop_size, stride: as in :func:`predict`.
        timeout: seconds to wait for a worker's sample before an error is raised; 0 waits for ever.
        on_sample: called with (name, image, prediction, label) of this rank's samples, as uint8 tensors on the CPU.
        progress: draws a progress bar, on rank 0 and on a terminal only.

    Raises:
        ValueError: the dataset is empty, a label and its image differ in size, an image is too small for the network, a
            label or prediction is out of range, or as :func:`predict`.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; expected one sample or more")
    device = torch.device(device)
    views = {"mode": mode, "scales": scales, "flip": flip, "crop_size": crop_size, "stride": stride}
    loader = DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        batch_size=None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws its seed here, not from the global random state
        **worker_options(workers, timeout),
    )
    confusion = ConfusionMatrix(dataset.num_classes, device)
    # disable=None: no bar where stderr is not a terminal.
    bar = tqdm(loader, desc=description, leave=False, disable=None if progress and rank == 0 else True)
    with keep_gathering(model, World(rank, world_size, device), autocast_dtype):
        for number, sample in enumerate(bar):
            image, label, name = sample["image"], sample["label"], sample["name"]
            if label.shape != image.shape[-2:]:
                raise ValueError(
                    f"{name}: label is {tuple(label.shape)}, image {tuple(image.shape[-2:])}; expected the same H x W"
                )
            file = dataset.files[rank + number * world_size][0] if isinstance(dataset, SegDataset) else name
            with (
                size_errors(model, file, label.shape, scales, crop_size if mode == "slide" else None),
                torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None),
            ):
                prediction = predict(model, image.to(device, non_blocking=True), **views)[0]
            confusion.update(prediction, label.to(device, non_blocking=True))
            if on_sample is not None:
                on_sample(name, image, prediction.cpu(), label)
    all_reduce_sum(confusion.counts)
    return confusion.compute()


def describe_samples(dataset: SegDataset) -> dict[str, Any]:
    """Tells one data set from another: its classes, and the names of its samples with the sizes of their files.

    It is the same wherever the folder is, and nothing is read.
    """
    samples = [
        (name, [path.stat().st_size for path in files])
        for name, files in zip(dataset.names, dataset.files, strict=True)
    ]
    digest = hashlib.sha256(json.dumps(samples).encode()).hexdigest()
    return {"class_names": list(dataset.class_names), "images": len(samples), "names_and_sizes_sha256": digest}
