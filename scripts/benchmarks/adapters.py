"""The forward pass of networks of other libraries: wrapped as a teacher is, and called by the library alone."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torchvision.models.segmentation import fcn_resnet50

from models import NORMALIZATIONS, WrappedModel, build_wrapped
from models.extras import import_extra
from scripts.benchmarks.timing import seconds_of_each, timing

CLASSES = 19


def networks() -> Iterator[tuple[str, WrappedModel]]:
    """A network of each of three libraries, with random weights."""
    library = import_extra("transformers", "transformers")
    with TemporaryDirectory() as folder:
        library.SegformerForSemanticSegmentation(library.SegformerConfig(num_labels=CLASSES)).save_pretrained(folder)
        library.SegformerImageProcessor().save_pretrained(folder)
        yield "transformers SegFormer-B0", build_wrapped(f"transformers:{folder}")[0]
        file = Path(folder) / "fcn.pth"
        torch.save(fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES).state_dict(), file)
        yield "torchvision FCN ResNet-50", build_wrapped("torchvision:fcn_resnet50", str(file))[0]
    normalization = NORMALIZATIONS["imagenet"]
    yield "smp Unet ResNet-34", build_wrapped("smp:Unet", num_classes=CLASSES, normalization=normalization)[0]


@torch.inference_mode()
def run(device: torch.device, batch: int, size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """Seconds from uint8 images to logits and taps (ours), and of the library's call on normalised images.

    On a CPU they are the process's own time, because the difference is smaller than what other processes take.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    rows = []
    images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8, device=device)
    for what, model in networks():
        model.to(device)
        x = model.normalize(images)
        calls = {"ours": lambda model=model: model(images), "published": lambda model=model, x=x: model.module(x)}
        seconds = seconds_of_each(calls, device, rounds, clock=clock)
        ratio = statistics.median(map(float.__truediv__, *seconds.values()))
        ours, library = map(timing, seconds.values())
        rows.append({
            "what": f"{what} {batch}x{size[0]}x{size[1]}", "ours": ours.median, "published": library.median,
            "ratio": 1 / ratio, "spread": ours.spread, "note": f"the adapter adds {ratio - 1:+.1%}",
        })  # fmt: skip
    return rows
