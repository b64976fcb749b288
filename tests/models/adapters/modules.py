"""Modules as users have them, for ``python:`` sources."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """Logits at stride 4; what it returns depends on ``form``."""

    def __init__(self, classes: int, form: str):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 10, 4, stride=4), nn.ReLU())
        self.classifier = nn.Conv2d(6, classes, 1)
        self.idle = nn.Identity()
        self.form = form
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, images):
        early = self.stem(images)
        logits, deep = self.classifier(early), self.deep(early)
        tokens = F.pad(deep.flatten(2).mT, (0, 0, 2, 0))  # two tokens of zeros before the grid
        return {
            "tensor": logits,
            "dict": {"aux": deep, "out": logits},
            "tuple": (logits, deep),
            "nested": {"heads": [{"masks": logits}], "tokens": tokens},
            "features": [early, deep],
            "labels": logits.argmax(1),
        }[self.form]


def plain(classes: int = 11, form: str = "tensor") -> nn.Module:
    return Plain(classes, form)


def inside(classes: int = 11) -> nn.Module:
    """All its tensors' names begin with 'net.'."""
    return nn.Sequential(OrderedDict(net=Plain(classes, "tensor")))


def broken() -> nn.Module:
    raise RuntimeError("no checkpoint")


def number() -> int:
    return 3
