"""SegFormer's all-MLP head (Xie et al., NeurIPS 2021, section 3.2)."""

from functools import partial

import torch
from torch import Tensor, nn

from models.base import Tap
from models.layers import conv_bn_relu, resize

STAGES = ("stage4", "stage3", "stage2", "stage1")  # the order in which the release concatenates them


class SegFormerHead(nn.Module):
    """Every stage projected to one width, resized to the grid of stage 1 and fused by a linear layer.

    The linear layers are 1x1 convolutions, which is the same thing without leaving B C h w.

    Args:
        taps: the backbone's ``tap_info``.
        num_classes: K.
        width: channels of each projection, and of the 'head' tap; the paper has 256 for B0 and B1, 768 for B2 to B5.
        dropout: probability, per channel, before the classifier.
    """

    default_output_stride = 32
    projection = staticmethod(partial(nn.Conv2d, kernel_size=1))

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int = 256, dropout: float = 0.1):
        super().__init__()
        self.tap = Tap(width, taps["stage1"].stride)
        self.project = nn.ModuleDict({stage: self.projection(taps[stage].channels, width) for stage in STAGES})
        self.fuse = conv_bn_relu(len(STAGES) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B width h w, on the grid of stage 1."""
        maps = [resize(self.project[stage](stages[stage]), like=stages["stage1"]) for stage in STAGES]
        features = self.fuse(torch.cat(maps, dim=1))
        return self.classifier(self.dropout(features)), features


class MMSegSegFormerHead(SegFormerHead):
    """mmsegmentation's form of it: each projection is a convolution without bias, BatchNorm and ReLU."""

    projection = staticmethod(conv_bn_relu)
