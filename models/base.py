"""The interface of every network: uint8 images in, logits and named taps out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.names import Registry, unknown_name


class Tap(NamedTuple):
    """Shape of one feature map, as the network declares it; it is never found by a forward pass.

    For B images of H x W the map is B x channels x ceil(H / stride) x ceil(W / stride). The stride is a fraction where
    the network sees the image resized (8 / 0.75).
    """

    channels: int
    stride: int | float


class SegOutput(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor | None  # B K h w on the grid of taps['head'], not upsampled; None: a teacher with features only
    taps: dict[str, Tensor]  # 'stage1'..'stage4' and 'head', or a teacher's own names, each B C h w
    aux: Tensor | None  # B K h w logits of the auxiliary head


class ModelSpec(NamedTuple):
    """All that a distillation method knows of a network: it builds its projectors from this alone."""

    taps: dict[str, Tap]
    num_classes: int | None  # channels of its logits; None for a teacher that has features only
    family: str  # 'cnn' or 'transformer'
    logit_stride: int | float | None = None  # None: that of the tap 'head', or there are no logits


class Normalization(NamedTuple):
    """Mean and standard deviation of each input channel, in 0..255, in the channel order of the network.

    Images are always RGB; with ``bgr`` the network reverses the channels first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Normalization":
        """From the entry of a file's metadata, where tuples are lists."""
        return cls(tuple(metadata["mean"]), tuple(metadata["std"]), metadata["bgr"])


NORMALIZATIONS = {
    "imagenet": Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "inception": Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "caffe_bgr": Normalization((104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), bgr=True),
}


class Backbone(nn.Module):
    """The encoder of a network: an image in, four feature maps out.

    ``forward`` takes B 3 H W float and returns ``stage1``..``stage4``, each B C h w exactly as ``tap_info`` declares.
    """

    tap_info: dict[str, Tap]  # 'stage1'..'stage4'
    family: str  # 'cnn' or 'transformer'


# Called with output_stride and drop_path; what models.backbones.build_backbone adds to it are timm's networks.
BACKBONES: Registry[Callable[[int, float], Backbone]] = Registry("backbone")

# Called with the backbone's ``tap_info`` (taps), the number of classes, dropout= (probability before the classifier)
# and, where the config sets it, width=. It is a module as ``SegModel`` describes it, with ``default_output_stride``:
# the output stride that it asks a backbone for.
HEADS: Registry[Callable[..., nn.Module]] = Registry("head")


def freeze(network: nn.Module, parts: Sequence[str]) -> None:
    """Takes parts of a network out of its training: no gradients, and evaluation mode (running statistics, dropout).

    Args:
        network: in training mode. It must not be put in training mode again, because that is for all its parts.
        parts: names of its modules, such as ``'backbone'`` or ``'backbone.net.layer1'``.

    Raises:
        ValueError: a part does not exist, or no parameter is left to train.
    """
    for name in parts:
        module, path = network, ""
        for part in name.split("."):
            inner = getattr(module, part, None)  # a child, or the backbone of a network of another library
            if not isinstance(inner, nn.Module):
                raise unknown_name("part", name, [f"{path}{child}" for child, _ in module.named_children()])
            module, path = inner, f"{path}{part}."
        module.requires_grad_(False).eval()
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{', '.join(map(repr, parts))} are all of the network, so nothing is left to train")


class NormalizedModel(nn.Module):
    """A network that owns its input normalisation."""

    dtype = torch.float32  # of the images that ``normalize`` gives

    def __init__(self, normalization: Normalization):
        super().__init__()
        self.normalization = normalization
        self.register_buffer("mean", torch.tensor(normalization.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalization.std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """B 3 H W RGB, uint8 or float in 0..255 -> float, in the network's channel order, standardised."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {tuple(images.shape)}; expected B x 3 x H x W, RGB in 0..255")
        if self.normalization.bgr:
            images = images.flip(1)
        return ((images.float() - self.mean) / self.std).to(self.dtype)


class SegModel(NormalizedModel):
    """A segmentation network that owns its input normalisation and declares its taps.

    It is a backbone (image -> four stages) and a head (stages -> logits and the 'head' tap).

    Args:
        head: module with ``tap: Tap`` and ``forward(dict[str, Tensor]) -> (logits B K h w, features B C h w)``.
        aux_head: module ``B C h w -> B K h w`` on ``stage3``, or None. It runs in training mode only.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        num_classes: int,
        aux_head: nn.Module | None = None,
        normalization: Normalization = NORMALIZATIONS["imagenet"],
    ):
        super().__init__(normalization)
        self.backbone, self.head, self.aux_head = backbone, head, aux_head
        self.num_classes = num_classes
        self.tap_info: dict[str, Tap] = {**backbone.tap_info, "head": head.tap}

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.tap_info, self.num_classes, self.backbone.family)

    def forward(self, images: Tensor) -> SegOutput:
        stages = self.backbone(self.normalize(images))
        logits, features = self.head(stages)
        aux = self.aux_head(stages["stage3"]) if self.aux_head is not None and self.training else None
        return SegOutput(logits, {**stages, "head": features}, aux)
