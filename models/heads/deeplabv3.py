"""DeepLabV3's head: atrous spatial pyramid pooling (Chen et al., 2017, section 3.3)."""

import torch
from torch import Tensor, nn

from models.base import HEADS, Tap
from models.heads.layers import GlobalContext, conv_bn_relu


class ASPP(nn.Module):
    """Five parallel branches, concatenated and projected: a 1x1, three dilated 3x3 convolutions, the mean feature.

    Args:
        rates: dilations of the 3x3 convolutions.
        kernel: size of the projection's kernel.
    """

    def __init__(self, inputs: int, width: int, rates: tuple[int, int, int], kernel: int = 1):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                conv_bn_relu(inputs, width),
                *(conv_bn_relu(inputs, width, kernel=3, dilation=rate) for rate in rates),
                GlobalContext(inputs, width),
            ]
        )
        self.project = conv_bn_relu(5 * width, width, kernel)

    def forward(self, maps: Tensor) -> Tensor:
        """B C h w -> B width h w."""
        return self.project(torch.cat([conv(maps) for conv in self.convs], dim=1))


def rates(stride: int) -> tuple[int, int, int]:
    """The paper's dilations 6, 12, 18 at output stride 16, twice that at 8 and half at 32.

    So a branch sees the same part of the image at every stride.
    """
    return 96 // stride, 192 // stride, 288 // stride


@HEADS.register("deeplabv3")
class DeepLabV3Head(nn.Module):
    """ASPP on stage 4, a 3x3 convolution, a classifier; the same layers as torchvision's.

    Args:
        width: channels of every layer and of the 'head' tap.
        dropout: probability inside ASPP.
    """

    default_output_stride = 8

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int = 256, dropout: float = 0.1):
        super().__init__()
        self.tap = Tap(width, taps["stage4"].stride)
        self.aspp = ASPP(taps["stage4"].channels, width, rates(taps["stage4"].stride))
        self.dropout = nn.Dropout(dropout)
        self.block = conv_bn_relu(width, width, kernel=3)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B width h w, on the grid of stage 4."""
        features = self.block(self.dropout(self.aspp(stages["stage4"])))
        return self.classifier(features), features


@HEADS.register("deeplabv3_mmseg")
class MMSegDeepLabV3Head(nn.Module):
    """mmsegmentation's DeepLabV3: ASPP ends in a 3x3 convolution instead of a 1x1 and a 3x3.

    Args:
        width: channels of every layer and of the 'head' tap; mmsegmentation has 512, or 128 with a ResNet-18.
    """

    default_output_stride = 8

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int = 512, dropout: float = 0.1):
        super().__init__()
        self.tap = Tap(width, taps["stage4"].stride)
        self.aspp = ASPP(taps["stage4"].channels, width, rates(taps["stage4"].stride), kernel=3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B width h w, on the grid of stage 4."""
        features = self.aspp(stages["stage4"])
        return self.classifier(self.dropout(features)), features
