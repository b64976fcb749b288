"""What a GPU would object to, without one: fake tensors know their device and shape, and hold no values."""

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from losses import build_method
from losses.labels import Labels
from tests.conftest import ROOT
from tests.losses.networks import MIT_B0, RESNET18, random_output
from utils.config import load_section

METHODS = sorted((ROOT / "configs/_base_/methods").glob("*.py"))


@pytest.mark.parametrize("swap", [False, True], ids=["cnn->transformer", "transformer->cnn"])
@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.stem)
def test_no_method_mixes_devices_or_makes_the_host_wait_for_the_gpu(file, swap):
    specs = (RESNET18, MIT_B0) if swap else (MIT_B0, RESNET18)
    with FakeTensorMode():
        with torch.device("cuda"):  # only what is made here is on the GPU without being told
            method = build_method(student=specs[0], teacher=specs[1], **load_section(file, "distill"))
            student, teacher = (random_output(spec, 2, 64, 64) for spec in specs)
            labels = Labels(torch.zeros(2, 64, 64, dtype=torch.uint8))
        counts = method.counts(labels)
        if file.stem == "cirkd":  # how many keys a class has depends on the labels
            with pytest.raises(DynamicOutputShapeException):
                method(student, teacher, labels)
            return
        found = {**method(student, teacher, labels), **{f"count of {name}": count for name, count in counts.items()}}
    assert {name: value.device.type for name, value in found.items()} == dict.fromkeys(found, "cuda")
