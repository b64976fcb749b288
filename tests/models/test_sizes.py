import pytest
import torch

from models import build_model
from models.inference import inference
from models.sizes import error_at, smallest_side, too_small


@pytest.fixture(scope="module")
def mit():
    return build_model("mit_b0", "segformer", 2, width=8)


def test_a_mit_needs_29_pixels_a_side(mit):
    """Its first stage has a cell every 4 pixels, and 8 cells, of which the last needs one pixel: 7 x 4 + 1."""
    with inference(mit):
        assert smallest_side(mit) == 29


def test_pvt_v2_whose_convolutions_raise_another_error_needs_as_many():
    network = build_model("pvt_v2_b0", "segformer", 2, width=8).eval()
    assert "Kernel size" in error_at(network, (28, 28))
    assert smallest_side(network) == 29


def test_batch_statistics_need_two_cells_or_two_images():
    """At stride 32 an image of 32 x 32 is one cell, and one of 33 x 33 four."""
    network = build_model("resnet18", "deeplabv3", 2, output_stride=32, width=8)
    assert "more than 1 value per channel" in error_at(network, (32, 32))
    assert smallest_side(network) == 33
    assert smallest_side(network, batch=2) == 1
    assert smallest_side(network.eval()) == 1


def test_nothing_changes_in_the_network_or_in_the_random_state():
    network = build_model("mit_b0", "segformer", 2, width=8, drop_path=0.2, dropout=0.5)
    before, random = {name: tensor.clone() for name, tensor in network.state_dict().items()}, torch.get_rng_state()
    assert error_at(network, (64, 64), batch=2) is None
    assert all(module.training for module in network.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(tensor.is_meta for tensor in network.buffers())


def test_the_scale_and_the_window_that_help_are_named(mit):
    assert too_small(mit, (29, 40), (1.0,), None) is None
    assert too_small(mit, (20, 40), (1.45, 2.0), None) is None  # 20 x 1.45 = 29
    half = too_small(mit, (40, 60), (1.0, 0.5), None)
    assert "40 x 60 pixels (H x W), 20 x 30 at scale 0.5; the network needs at least 29 x 29" in half
    assert "scales of 0.73 or more" in half  # 29 / 40 = 0.725
    windows = too_small(mit, (40, 60), (1.0,), (16, 32))
    assert "in windows of 16 x 32" in windows
    assert windows.endswith("set eval.crop_size=(29, 29) or larger")


def test_a_network_that_cannot_run_without_values_is_not_blamed():
    class Reads(torch.nn.Module):
        def forward(self, images):
            return images * images.float().mean().item()

    assert smallest_side(Reads()) is None
    assert too_small(Reads(), (1, 1), (1.0,), None) is None
