"""MGD: values by hand, and its masks. What holds of every feature method is in test_fitnet.py."""

import pytest
import torch
from torch import nn

from losses.alignment import MaskedGeneration
from losses.labels import Labels
from losses.mgd import MGD
from models.base import SegOutput, Tap
from tests.losses.networks import LARGE, SMALL, spec, zero_labels

ONE = Tap(1, 1)


def by_hand(generation, first, second):
    """One channel: both convolutions sum over rows of three cells, with these factors and biases."""
    with torch.no_grad():
        for conv, (factor, bias) in zip((generation.generate[0], generation.generate[2]), (first, second), strict=True):
            conv.weight.zero_()
            conv.weight[..., 1, :] = factor
            conv.bias.fill_(bias)


def test_mgd_by_hand():
    tiny = spec("cnn", (1,) * 4, (1,) * 4, Tap(1, 1), num_classes=2)
    method = MGD(tiny, tiny, mask_ratio=0.0)
    by_hand(method.generation["mgd"], (1.0, -3.0), (2.0, 1.0))
    student, teacher = (
        SegOutput(torch.zeros(1, 2, 1, 4), {"stage4": torch.tensor([[[values]]])}, None)
        for values in ([1.0, 3.0, -2.0, 9.0], [7.0, 2.0, 4.0, 8.0])
    )
    labels = torch.tensor([[[0, 1, 1, 255]]], dtype=torch.uint8)
    # With the void cell 0: sums (4, 2, 1, -2) - 3, rectified (1, 0, 0, 0); then 1 + 2 (1, 1, 0, 0) = (3, 3, 1, 1).
    assert method(student, teacher, Labels(labels))["mgd"].item() == pytest.approx((4**2 + 1 + 3**2) / 3)
    assert method.weights == {"mgd": 168.0}


def test_nothing_is_lost_where_generation_passes_the_teacher_on():
    torch.manual_seed(0)
    method = MGD(SMALL, LARGE, mask_ratio=0.0)
    for conv in (method.generation["mgd"].generate[0], method.generation["mgd"].generate[2]):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    features = torch.rand(2, 8, 3, 4)  # not negative: the rectifier passes them on
    output = SegOutput(torch.zeros(2, 3, 6, 8), {"stage4": features}, None)
    assert method(output, output, zero_labels(2, 6, 8))["mgd"].item() == 0


def shown_cells(mask_ratio, valid):
    """Cells that generation gets to see, of a map of ones."""
    generation = MaskedGeneration(ONE, ONE, mask_ratio)
    seen = []
    generation.generate.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    generation(torch.ones(len(valid), 1, *valid.shape[1:]), valid)
    return seen[0][:, 0]


def test_masks_leave_their_share_of_the_cells_and_follow_the_global_seed():
    valid = torch.ones(4, 50, 50, dtype=torch.bool)
    valid[0] = False
    torch.manual_seed(0)
    first, second = shown_cells(0.75, valid), shown_cells(0.75, valid)
    assert set(first.unique().tolist()) == {0.0, 1.0}  # kept cells keep their size
    assert not first[0].any()
    assert first[1:].mean().item() == pytest.approx(0.25, abs=0.02)  # a standard deviation is .005
    assert not torch.equal(first, second)
    assert not torch.equal(first[1], first[2])
    torch.manual_seed(0)
    assert torch.equal(shown_cells(0.75, valid), first)
    assert torch.equal(shown_cells(0.0, valid), valid.float())


def test_all_channels_of_a_cell_are_masked_together_and_masked_cells_are_in_the_mean():
    torch.manual_seed(0)
    method = MGD(SMALL, LARGE, mask_ratio=0.999)
    output = SegOutput(torch.zeros(1, 3, 6, 8), {"stage4": torch.ones(1, 8, 3, 4)}, None)
    for conv in (method.generation["mgd"].generate[0], method.generation["mgd"].generate[2]):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    assert method(output, output, zero_labels(1, 6, 8))["mgd"].item() == 1.0  # all 12 cells masked: (0 - 1)^2


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_mask_of_nothing_or_all_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio is {ratio}"):
        MGD(SMALL, LARGE, mask_ratio=ratio)
