"""Declared networks, random outputs of theirs and random labels, for tests that need no real network."""

import math

import torch

from losses.labels import Labels
from models.base import ModelSpec, SegOutput, Tap
from utils.names import VOID


def spec(family, channels, strides, head, num_classes=19):
    taps = {f"stage{i}": Tap(c, s) for i, (c, s) in enumerate(zip(channels, strides, strict=True), start=1)}
    return ModelSpec({**taps, "head": head}, num_classes, family)


RESNET18 = spec("cnn", (64, 128, 256, 512), (4, 8, 8, 8), Tap(128, 8))
RESNET101 = spec("cnn", (256, 512, 1024, 2048), (4, 8, 8, 8), Tap(256, 8))
MIT_B0 = spec("transformer", (32, 64, 160, 256), (4, 8, 16, 32), Tap(256, 4))
MIT_B4 = spec("transformer", (64, 128, 320, 512), (4, 8, 16, 32), Tap(768, 4))

# Two small networks on one set of grids, for what is exact only where the grids agree.
SMALL = spec("cnn", (6, 8, 8, 8), (1, 1, 2, 2), Tap(4, 1), num_classes=3)
LARGE = spec("transformer", (8, 8, 12, 8), (1, 1, 2, 2), Tap(4, 1), num_classes=3)


def random_output(network, B, H, W, requires_grad=False):
    def randn(channels, stride):
        return torch.randn(B, channels, math.ceil(H / stride), math.ceil(W / stride)).requires_grad_(requires_grad)

    taps = {name: randn(*tap) for name, tap in network.taps.items()}
    logits = None if network.num_classes is None else randn(network.num_classes, network.taps["head"].stride)
    return SegOutput(logits, taps, None)


def random_ids(B, H, W, num_classes=3, void=0.2):
    """B H W uint8."""
    ids = torch.randint(num_classes, (B, H, W), dtype=torch.uint8)
    return ids.masked_fill(torch.rand(B, H, W) < void, VOID)


def random_labels(B, H, W, num_classes=3, void=0.2):
    return Labels(random_ids(B, H, W, num_classes, void))


def zero_labels(B, H, W):
    """Class 0 everywhere."""
    return Labels(torch.zeros(B, H, W, dtype=torch.uint8))
