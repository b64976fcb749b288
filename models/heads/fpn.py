"""A light head for real-time students: the top-down pathway of a feature pyramid (Lin et al., CVPR 2017, section 3)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import HEADS, Tap
from models.heads.layers import conv_bn_relu

STAGES = ("stage4", "stage3", "stage2", "stage1")  # from top to bottom


@HEADS.register("fpn")
class FPNHead(nn.Module):
    """Each stage projected to one width and added to the coarser sum, resized to its grid; then a separable 3x3.

    Only the finest map is smoothed and classified. The paper's 3x3 convolution is a depthwise one and a 1x1 here.
    """

    default_output_stride = 32

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int = 128, dropout: float = 0.1):
        super().__init__()
        self.tap = Tap(width, taps["stage1"].stride)
        self.project = nn.ModuleDict({stage: nn.Conv2d(taps[stage].channels, width, 1) for stage in STAGES})
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.block = nn.Sequential(depthwise, nn.BatchNorm2d(width), *conv_bn_relu(width, width))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B width h w, on the grid of stage 1."""
        maps = self.project[STAGES[0]](stages[STAGES[0]])
        for stage in STAGES[1:]:
            finer = self.project[stage](stages[stage])
            maps = finer + F.interpolate(maps, size=finer.shape[-2:])  # the nearest cell, as in the paper
        features = self.block(maps)
        return self.classifier(self.dropout(features)), features
