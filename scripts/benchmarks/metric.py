"""The metric of one Cityscapes image: class histograms as published against one joint count."""

from typing import Any

import torch
from torch import Tensor

from engine.metrics import ConfusionMatrix
from scripts.benchmarks.timing import compare
from utils.names import VOID

CLASSES = 19
SIZE = (1024, 2048)


class PublishedMetric:
    """Pixel accuracy and IoU as in the field's releases, rebuilt from their description.

    Every image copies two numbers from the device and makes three float32 histograms on the CPU. Void is -1.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.right = self.labelled = 0
        self.intersection, self.union = torch.zeros(2, num_classes)

    def update(self, prediction: Tensor, truncated: Tensor, label: Tensor) -> None:
        """Counts B H W int64 class maps; ``truncated`` is the one that accuracy uses, see :meth:`update_logits`."""
        self.labelled += (label >= 0).sum().item()
        self.right += ((truncated == label) * (label >= 0)).sum().item()
        truth = label.float() + 1
        prediction = (prediction + 1).float() * (truth > 0).float()
        intersection = prediction * (prediction == truth).float()
        maps = (intersection, prediction, truth)
        common, predicted, true = (
            torch.histc(pixels.cpu(), self.num_classes, min=1, max=self.num_classes) for pixels in maps
        )
        self.intersection += common
        self.union += predicted + true - common

    def update_logits(self, logits: Tensor, label: Tensor) -> None:
        """Counts the argmax of B K H W; accuracy is that of logits truncated to integers, as in the releases."""
        self.update(logits.argmax(1), logits.long().argmax(1), label)

    def compute(self) -> tuple[float, float]:
        """Pixel accuracy and mIoU."""
        return self.right / self.labelled, (self.intersection / self.union).mean().item()


def random_maps(size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor]:
    """Prediction and label, H W uint8 in blocks of 16 pixels: a tenth of the label void, a tenth of the rest wrong."""
    generator = torch.Generator().manual_seed(0)
    blocks = (-(-size[0] // 16), -(-size[1] // 16))
    label = torch.randint(0, CLASSES, blocks, generator=generator)
    wrong = torch.rand(blocks, generator=generator) < 0.1
    prediction = torch.where(wrong, (label + 1) % CLASSES, label)
    label[torch.rand(blocks, generator=generator) < 0.1] = VOID

    def grown(blocks: Tensor) -> Tensor:
        pixels = blocks.to(torch.uint8).repeat_interleave(16, 0).repeat_interleave(16, 1)
        return pixels[: size[0], : size[1]].contiguous()

    return grown(prediction), grown(label)


def without_void(label: Tensor) -> Tensor:
    """uint8 with 255 for void -> int64 with -1 for void."""
    return torch.where(label == VOID, -1, label.long())


def run(quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """From class maps to counts; the inputs are on the device, in the type that each side uses."""
    prediction, label = (pixels.to(device) for pixels in random_maps())
    ours, theirs = ConfusionMatrix(CLASSES, device), PublishedMetric(CLASSES)
    longs = prediction.long()[None], without_void(label)[None]
    alternatives = {
        "ours": lambda: ours.update(prediction, label),
        "published": lambda: theirs.update(longs[0], longs[0], longs[1]),
    }
    what = f"confusion matrix {SIZE[0]}x{SIZE[1]}"
    return [compare(what, alternatives, device, 5 if quick else 50, f"{CLASSES} classes, argmax not counted")]
