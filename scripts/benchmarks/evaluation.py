"""Evaluation of whole images of Cityscapes' size: the field's loop against ``engine.evaluation.evaluate``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.evaluation import evaluate
from engine.metrics import ConfusionMatrix
from models import build_model
from models.inference import class_map
from models.placement import place
from scripts.benchmarks.metric import CLASSES, SIZE, PublishedMetric, random_maps, without_void
from scripts.benchmarks.published import as_published
from scripts.benchmarks.timing import compare

NETWORKS = (("mit_b0", "segformer"), ("resnet18", "deeplabv3"))


class Samples(list):
    """A data set in memory: loading is not measured."""

    num_classes = CLASSES


def published_counts(logits: Tensor, label: Tensor, metric: PublishedMetric) -> None:
    """Counts B K h w: the full-resolution logits are added to a buffer for all views, here one."""
    total = torch.zeros(1, CLASSES, *label.shape[-2:], device=logits.device)
    total += F.interpolate(logits, label.shape[-2:], mode="bilinear")
    total /= 1
    metric.update_logits(total, label)


@torch.no_grad()
def published_evaluate(model: nn.Module, image: Tensor, label: Tensor, images: int, device: torch.device) -> float:
    """mIoU in float32, NCHW, one image at a time, with the figures read for the log after each.

    Args:
        image: 1 3 H W float32, pinned for a GPU, as the loader gives it.
        label: 1 H W with -1 for void, likewise.
        images: how often it is evaluated.
    """
    metric, miou = PublishedMetric(CLASSES), 0.0
    for _ in range(images):
        pixels, truth = image.to(device), label.long().to(device)
        published_counts(model(pixels).logits, truth, metric)
        _, miou = metric.compute()
    return miou


def counting_row(stride: int, quick: bool, device: torch.device) -> dict[str, Any]:
    """All that follows the network: from its logits to the counts."""
    logits = torch.randn(1, CLASSES, SIZE[0] // stride, SIZE[1] // stride, device=device)
    label = random_maps()[1].to(device)[None]
    longs = without_void(label)
    ours, theirs = ConfusionMatrix(CLASSES, device), PublishedMetric(CLASSES)
    alternatives = {
        "ours": lambda: ours.update(class_map(logits, SIZE), label),
        "published": lambda: published_counts(logits, longs, theirs),
    }
    what = f"logits to counts {SIZE[0]}x{SIZE[1]}"
    return compare(what, alternatives, device, 1 if quick else 10, f"{CLASSES} classes, logits at stride {stride}")


def network_row(backbone: str, head: str, quick: bool, device: torch.device) -> dict[str, Any]:
    """The whole evaluation: ours as in the shipped configs, in bfloat16 and channels last."""
    size = (128, 256) if quick else SIZE
    images, rounds = (20, 5) if device.type == "cuda" else (1, 3)
    torch.manual_seed(0)
    model = as_published(build_model(backbone, head, CLASSES)).eval().to(device)
    fast = place(build_model(backbone, head, CLASSES).eval(), device, channels_last=True)
    fast.load_state_dict(model.state_dict())
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, truth = random_maps(size)
    data = Samples([{"image": noise, "label": truth, "name": "noise"}] * images)
    image, label = noise.float()[None], without_void(truth)[None]
    if device.type == "cuda":
        image, label = image.pin_memory(), label.pin_memory()
    alternatives = {
        "ours": lambda: evaluate(fast, data, device=device, autocast_dtype=torch.bfloat16, progress=False),
        "published": lambda: published_evaluate(model, image, label, images, device),
    }
    what = f"whole-image evaluation {size[0]}x{size[1]}, {backbone} {head}"
    return compare(what, alternatives, device, rounds, "ours bf16 channels last, published float32 NCHW", images)


def run(quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """What follows the network at the full size, then whole evaluations (``quick``: of small images)."""
    return [counting_row(4, quick, device), *(network_row(*network, quick, device) for network in NETWORKS)]
