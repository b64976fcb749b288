"""A network on its device and in its memory layout."""

import torch
from torch import Tensor, nn

# PyTorch's CPU convolution (oneDNN) writes out of bounds in the gradient of such weights where maps are channels_last.
NARROW = 16  # input channels below which it does


def place(network: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Moves a network to a device, in place; on a CPU, strided 1x1 convolutions of few channels stay contiguous.

    ``channels_last`` is the memory layout of its convolutions, otherwise contiguous. Call it with the final weights.
    """
    network.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if channels_last and device.type == "cpu":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and _is_unsafe(layer):
                weight = layer.weight.data
                # contiguous() would change nothing: the strides of an axis of length 1 are not looked at there.
                layer.weight.data = torch.empty(weight.shape, dtype=weight.dtype).copy_(weight)
                layer.register_forward_pre_hook(_make_contiguous)
    return network


def _is_unsafe(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels // layer.groups < NARROW


def _make_contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)
