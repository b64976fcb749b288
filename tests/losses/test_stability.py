"""No method overflows in half precision, at the sizes of real crops and with features as large as networks give."""

import pytest
import torch

from losses import build_method
from models.base import SegOutput
from tests.conftest import ROOT
from tests.losses.networks import MIT_B0, RESNET18, random_labels
from utils.config import load_section

FILES = sorted((ROOT / "configs/_base_/methods").glob("*.py"))
LARGE = 30.0  # standard deviation of the maps: their squares, summed over channels, are beyond float16's 65504


def half_output(network, dtype, requires_grad):
    def maps(channels, stride):
        x = LARGE * torch.randn(1, channels, 512 // stride, 512 // stride)
        return x.to(dtype).requires_grad_(requires_grad)

    taps = {name: maps(*tap) for name, tap in network.taps.items()}
    return SegOutput(maps(network.num_classes, network.taps["head"].stride), taps, None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_terms_and_gradients_stay_finite(file, dtype):
    torch.manual_seed(0)
    section = load_section(file, "distill")
    if section["type"] == "cirkd":
        section |= {"pixel_queue": 100, "region_queue": 20, "pixel_keys": 190, "region_keys": 38, "batch_cells": 256}
    method = build_method(student=MIT_B0, teacher=RESNET18, **section)
    student, teacher = half_output(MIT_B0, dtype, True), half_output(RESNET18, dtype, False)
    labels = random_labels(1, 512, 512, num_classes=19)
    with torch.autocast("cpu", dtype=dtype):
        terms = method(student, teacher, labels)
    assert terms.keys() == method.weights.keys()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    gradients = [x.grad for x in (student.logits, *student.taps.values()) if x.grad is not None]
    gradients += [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
