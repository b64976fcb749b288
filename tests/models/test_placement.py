import multiprocessing

import pytest
import torch
from torch import nn

from models import build_model
from models.placement import place

CPU = torch.device("cpu")
FAMILIES = (
    "convnext_atto", "efficientnet_lite0", "efficientvit_b0", "fastvit_t8", "ghostnet_100", "hgnetv2_b0", "mit_b0",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0", "regnety_002", "repvgg_a0", "repvit_m0_9",
    "resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224",
)  # fmt: skip
HEADS = {"segformer": 16, "linear": None, "fpn": 16}
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["models"])


def take_a_step(backbone: str) -> None:
    """Steps of each head as the trainer takes them on a CPU by default; the process dies where PyTorch's kernels do."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    for head, width in HEADS.items():
        network = place(build_model(backbone, head, 3, width=width), CPU, channels_last=True)
        for _ in range(2):
            loss = network(images).logits.square().mean()
            loss.backward()
        gradients = [each.grad for each in network.parameters() if each.grad is not None]
        assert any(each.any() for each in gradients)
        assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_takes_a_step_without_a_crash(backbone):
    child = processes.Process(target=take_a_step, args=(backbone,))
    child.start()
    child.join(120)
    assert child.exitcode == 0, f"{backbone} ended with {child.exitcode} (below 0: the signal that killed it)"


@pytest.mark.parametrize("channels", [3, 15])
def test_a_narrow_strided_convolution_gives_the_gradient_of_the_plain_one(channels):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 48, 1, 2, bias=False)
    placed = nn.Conv2d(channels, 48, 1, 2, bias=False)
    placed.load_state_dict(plain.state_dict())
    placed = place(nn.Sequential(placed), CPU, channels_last=True)
    x = torch.randn(2, channels, 32, 40)
    for network, images in ((plain, x), (placed, x.to(memory_format=torch.channels_last))):
        network(images).square().sum().backward()
    torch.testing.assert_close(placed[0].weight.grad, plain.weight.grad)


def test_other_convolutions_are_channels_last():
    network = place(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 4, 3), nn.Conv2d(3, 8, 1, 2)), CPU, True)
    layouts = [layer.weight.stride() for layer in network]
    assert layouts == [(27, 1, 9, 3), (72, 1, 24, 8), (3, 1, 1, 1)]
