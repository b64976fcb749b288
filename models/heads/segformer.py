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

    The linear layers are 1x1 convolutions, which is the same thing without leaving B C h w. The fusing one is applied
    before the resizing, stage by stage, and the results are added: it acts on channels, bilinear interpolation (whose
    weights add up to 1) on positions, and neither minds which comes first. The product over 4 x width channels of the
    finest grid, half of SegFormer-B0's operations, is then one over each stage's own channels on its own grid.

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
        convolution, *rest = self.fuse
        weights = dict(zip(STAGES, matrix(convolution).chunk(len(STAGES), dim=1), strict=True))
        fused = self.project_and_fuse("stage1", stages["stage1"], weights["stage1"])
        for stage in STAGES[:-1]:
            fused += resize(self.project_and_fuse(stage, stages[stage], weights[stage]), like=fused)
        features = nn.Sequential(*rest)(fused)
        return self.classifier(self.dropout(features)), features

    def project_and_fuse(self, stage: str, maps: Tensor, weight: Tensor) -> Tensor:
        """B C h w -> B width h w: this stage's part of the fused map, by the product of both layers' matrices.

        Args:
            stage: its name.
            maps: its features.
            weight: width width, the fusing layer's for this stage.
        """
        layer = self.project[stage]
        return F.conv2d(maps, (weight @ matrix(layer))[..., None, None], weight @ layer.bias)


@HEADS.register("segformer_mmseg")
class MMSegSegFormerHead(SegFormerHead):
    """mmsegmentation's form of it: each projection is a convolution without bias, BatchNorm and ReLU."""

    projection = staticmethod(conv_bn_relu)

    def project_and_fuse(self, stage: str, maps: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(self.project[stage](maps), weight[..., None, None])


def matrix(layer: nn.Conv2d) -> Tensor:
    """A 1x1 convolution's weights, outputs x inputs; their gradient lies in memory as channels_last weights do."""
    return layer.weight.permute(0, 2, 3, 1).flatten(1)
