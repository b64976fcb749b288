"""DeepLabV3's head: atrous spatial pyramid pooling (Chen et al., 2017, section 3.3)."""

import torch
from torch import Tensor, nn

from models.base import Tap
from models.layers import GlobalContext, conv_bn_relu


class ASPP(nn.Module):
    """A 1x1 and three dilated 3x3 convolutions and the image's mean feature, side by side, projected to one map.

    Args:
        inputs: C.
        width: channels of each branch and of the result.
        rates: dilations of the 3x3 convolutions.
        dropout: probability after the projection.
    """

    def __init__(self, inputs: int, width: int, rates: tuple[int, int, int], dropout: float):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                conv_bn_relu(inputs, width),
                *(conv_bn_relu(inputs, width, kernel=3, dilation=rate) for rate in rates),
                GlobalContext(inputs, width),
            ]
        )
        self.project = conv_bn_relu(5 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """B C h w -> B width h w."""
        return self.dropout(self.project(torch.cat([conv(maps) for conv in self.convs], dim=1)))


class DeepLabV3Head(nn.Module):
    """ASPP on stage 4, a 3x3 convolution, a classifier; layer for layer torchvision's.

    The dilations are the paper's 6, 12, 18 at output stride 16, twice that at 8 and half at 32, so that a branch always
    sees the same stretch of the image.

    Args:
        taps: the backbone's ``tap_info``.
        num_classes: K.
        width: channels throughout, and of the 'head' tap.
        dropout: probability inside ASPP.
    """

    default_output_stride = 8

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int = 256, dropout: float = 0.1):
        super().__init__()
        channels, stride = taps["stage4"]
        rate = 96 // stride
        self.tap = Tap(width, stride)
        self.aspp = ASPP(channels, width, (rate, 2 * rate, 3 * rate), dropout)
        self.block = conv_bn_relu(width, width, kernel=3)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B width h w, on the grid of stage 4."""
        features = self.block(self.aspp(stages["stage4"]))
        return self.classifier(features), features
