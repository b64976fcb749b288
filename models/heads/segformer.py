"""SegFormer's all-MLP head (Xie et al., NeurIPS 2021, section 3.2)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import HEADS, Tap
from models.heads.layers import conv_bn_relu, resize

STAGES = ("stage4", "stage3", "stage2", "stage1")  # the order in which the release concatenates them


@HEADS.register("segformer")
class SegFormerHead(nn.Module):
    """Every stage projected to one width, resized to the grid of stage 1, concatenated and fused by a linear layer.

    The linear layers are 1x1 convolutions, which compute the same on B C h w. The fusing layer is applied to each stage
    before the resizing, and the results are added. This is exact: the layer acts on channels, bilinear interpolation
    (whose weights sum to 1) on positions, so their order does not matter. It replaces a product over 4 x width channels
    on the finest grid, half of the operations of SegFormer-B0, by a smaller one on each stage's own grid.

    Args:
        width: channels of each projection and of the 'head' tap; the paper has 256 for B0 and B1, 768 for B2 to B5.
        dropout: probability that a channel is dropped before the classifier.
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
        convolution, *rest = self.fuse
        weights = dict(zip(STAGES, matrix(convolution).chunk(len(STAGES), dim=1), strict=True))
        fused = self.project_and_fuse("stage1", stages["stage1"], weights["stage1"])
        for stage in STAGES[:-1]:
            fused += resize(self.project_and_fuse(stage, stages[stage], weights[stage]), like=fused)
        features = nn.Sequential(*rest)(fused)
        return self.classifier(self.dropout(features)), features

    def project_and_fuse(self, stage: str, maps: Tensor, weight: Tensor) -> Tensor:
        """B C h w -> B width h w: the part of the fused map from one stage; its fusing weights are width x width."""
        layer = self.project[stage]
        return F.conv2d(maps, (weight @ matrix(layer))[..., None, None], weight @ layer.bias)


@HEADS.register("segformer_mmseg")
class MMSegSegFormerHead(SegFormerHead):
    """mmsegmentation's SegFormer head: each projection is a convolution without bias, BatchNorm and ReLU."""

    projection = staticmethod(conv_bn_relu)

    def project_and_fuse(self, stage: str, maps: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(self.project[stage](maps), weight[..., None, None])


def matrix(layer: nn.Conv2d) -> Tensor:
    """The weights of a 1x1 convolution, outputs x inputs; their gradient keeps the channels_last format."""
    return layer.weight.permute(0, 2, 3, 1).flatten(1)
