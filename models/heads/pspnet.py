"""PSPNet's head: pyramid pooling (Zhao et al., CVPR 2017, section 3.2)."""

import torch
from torch import Tensor, nn

from models.base import HEADS, Tap
from models.heads.layers import GlobalContext, RegionPool, conv_bn_relu, resize

BINS = (2, 3, 6)  # regions a side; the fourth level is the mean of the image


@HEADS.register("pspnet")
class PSPHead(nn.Module):
    """Stage 4 and its averages over 1, 2x2, 3x3 and 6x6 regions, a 3x3 convolution, a classifier.

    Each of the four averages is projected to a quarter of the channels of stage 4, as in the paper.
    """

    default_output_stride = 8

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int = 512, dropout: float = 0.1):
        super().__init__()
        channels, stride = taps["stage4"]
        level = channels // (1 + len(BINS))
        self.tap = Tap(width, stride)
        self.context = GlobalContext(channels, level)
        self.pyramid = nn.ModuleList(nn.Sequential(RegionPool(bins), conv_bn_relu(channels, level)) for bins in BINS)
        self.block = conv_bn_relu(channels + level * (1 + len(BINS)), width, kernel=3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B width h w, on the grid of stage 4."""
        maps = stages["stage4"]
        levels = [resize(level(maps), like=maps) for level in self.pyramid]
        features = self.block(torch.cat([maps, self.context(maps), *levels], dim=1))
        return self.classifier(self.dropout(features)), features
