"""The head that measures what frozen features hold: a linear classifier (Oquab et al., TMLR 2024, section 7.4)."""

from torch import Tensor, nn

from models.base import HEADS, Tap


@HEADS.register("linear")
class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution on stage 4; the normalised map is the 'head' tap.

    Args:
        width: only None: the head has the channels of stage 4.

    Raises:
        ValueError: ``width`` is given.
    """

    default_output_stride = 32

    def __init__(self, taps: dict[str, Tap], num_classes: int, width: int | None = None, dropout: float = 0.1):
        super().__init__()
        if width is not None:
            raise ValueError(f"width is {width}; head 'linear' has the channels of stage 4: set width=None")
        self.tap = taps["stage4"]
        self.norm = nn.BatchNorm2d(self.tap.channels)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(self.tap.channels, num_classes, 1)

    def forward(self, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stages -> logits B K h w and features B C h w, on the grid of stage 4."""
        features = self.norm(stages["stage4"])
        return self.classifier(self.dropout(features)), features
