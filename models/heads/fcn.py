"""The auxiliary head: a small fully convolutional classifier on an intermediate stage."""

from torch import Tensor, nn

from models.heads.layers import conv_bn_relu


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, classifier (Long et al., CVPR 2015, as in torchvision)."""

    def __init__(self, inputs: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.block = conv_bn_relu(inputs, inputs // 4, kernel=3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(inputs // 4, num_classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """B C h w -> B K h w."""
        return self.classifier(self.dropout(self.block(maps)))
