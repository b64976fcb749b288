"""A network on its device and in its memory layout."""

import torch
from torch import nn

# PyTorch's CPU convolution (oneDNN) writes out of bounds in the gradient of such weights where maps are channels_last.
NARROW = 16  # input channels below which it does


def place(network: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Moves a network to a device, in place; on a CPU, strided 1x1 convolutions of few channels stay contiguous.

    ``channels_last`` is the memory layout of its convolutions, otherwise contiguous. Call it with the final weights.
    """
    network.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if channels_last and device.type == "cpu":
        for layer in network.modules():
            strided = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and max(layer.stride) > 1
            if strided and layer.in_channels // layer.groups < NARROW:
                weight = layer.weight.data
                # contiguous() would change nothing: the strides of an axis of length 1 are not looked at there.
                layer.weight.data = torch.empty(weight.shape, dtype=weight.dtype).copy_(weight)
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network
