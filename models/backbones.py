"""Backbones by name: timm's networks of four feature levels and its plain ViTs, and the Mix Transformers."""

from collections.abc import Iterable

import timm
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import FeatureInfo
from torch import Tensor, nn

from models import mit  # noqa: F401  (registers the Mix Transformers)
from models.base import BACKBONES, Backbone, Normalization, Tap
from utils.names import unknown_name

# ResNet-18 with a stem of three convolutions of width 32 ('c', as in mmsegmentation) or 64 ('s', as in CIRKD). timm has
# these names from depth 50 on, so at depth 18 they are timm's ResNet-18 with options.
DEEP_STEMS = {
    "resnet18c": ("resnet18", {"stem_type": "deep", "stem_width": 32}),
    "resnet18s": ("resnet18", {"stem_type": "deep", "stem_width": 64}),
}

# The names of timm's networks that an error suggests; every other name of timm works too.
OFFERED = ("resnet18", "resnet101", *DEEP_STEMS, "resnet101c", "resnet101s")

# Facts that timm does not give, by module of timm.models. A module that is not listed has convolutional networks that
# take any image size and may round the size of a grid down.
TRANSFORMERS = {
    *("coat", "davit", "edgenext", "efficientformer", "efficientformer_v2", "efficientvit_mit", "gcvit", "hiera"),
    *("hieradet_sam2", "iformer", "lowformer", "maxxvit", "metaformer", "mobilevit", "mvitv2", "nextvit", "pvt_v2"),
    *("swiftformer", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "twins"),
}
# Plain ViTs (DeiT, DINOv2, DINOv3, SigLIP, EVA, SAM, ...), whose blocks all have one grid. Their position embeddings
# follow the image size: the learnt ones are interpolated, the rotary ones computed. Those of BEiT do not.
PLAIN_VITS = {"deit", "eva", "vision_transformer", "vision_transformer_sam"}
# The grids of these are ceil(size / stride) at every size; the others (patchify stems, unpadded pooling) drop the last
# cells.
ROUNDS_UP = {"efficientnet", "mobilenetv3", "pvt_v2", "regnet", "res2net", "resnet", "resnetv2"}
ANY_SIZE = {
    **dict.fromkeys(PLAIN_VITS - {"vision_transformer_sam"}, {"dynamic_img_size": True}),
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"strict_img_size": False},
}


class TimmBackbone(Backbone):
    """The last four feature levels of a timm network: strides 4, 8, 16, 32, or smaller ones by dilation.

    The four levels of a plain ViT are its maps after each quarter of its blocks, all with the stride of its patches
    (14, 16, ...), without class and register tokens.

    Args:
        name: timm's name, with or without a pretrained tag (no weights are downloaded).
        output_stride: 8, 16 or 32: the largest stride; dilation replaces the strides beyond it.

    Raises:
        ValueError: timm has no such network, it cannot be built with these options, or it does not have four stages.
    """

    def __init__(self, name: str, output_stride: int, drop_path: float):
        super().__init__()
        timm_name, options = DEEP_STEMS.get(name, (name, {}))
        if not timm.is_model(timm_name):
            offered = [*OFFERED, *BACKBONES]
            raise unknown_name("backbone", name, [*offered, *timm.list_models()], shown=offered)
        self.name = name
        module = timm.models.model_entrypoint(timm_name).__module__.rpartition(".")[2]
        self.family = "transformer" if module in TRANSFORMERS | PLAIN_VITS else "cnn"
        plain = module in PLAIN_VITS
        self.net = _create(timm_name, plain, output_stride, drop_path, ANY_SIZE.get(module, {}) | options)
        if name == "resnet18c":
            _undilate_second_convolutions(self.net)
        self.rounds_up = module in ROUNDS_UP and not any(map(_pools_unpadded, self.net.modules()))
        self.channels_last = getattr(self.net, "output_fmt", None) == "NHWC"

        strides = self.net.feature_info.reduction()[-4:]
        expected = strides if plain else [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        if strides != expected:
            raise ValueError(f"backbone {name!r} has feature strides {strides}; heads need four stages at {expected}")
        channels = self.net.feature_info.channels()[-4:]
        self.tap_info = {f"stage{i}": Tap(c, s) for i, (c, s) in enumerate(zip(channels, strides, strict=True), 1)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """B 3 H W float -> ``stage1``..``stage4``, each B C ceil(H / stride) ceil(W / stride)."""
        height, width = images.shape[-2:]
        if not self.rounds_up:  # pad to whole cells with zeros, which are the mean colour
            cell = self.tap_info["stage4"].stride
            images = F.pad(images, (0, (cell - width % cell) % cell, 0, (cell - height % cell) % cell))
        stages = {}
        for (stage, tap), maps in zip(self.tap_info.items(), self.net(images)[-4:], strict=True):
            if self.channels_last:
                maps = maps.permute(0, 3, 1, 2)
            # Not -(-a // b): ONNX rounds the division of negative integers towards zero.
            h, w = ((length + tap.stride - 1) // tap.stride for length in (height, width))
            if not self.rounds_up:
                maps = maps[..., :h, :w]
            if maps.shape[1:] != (tap.channels, h, w):
                raise ValueError(
                    f"backbone {self.name!r} gives {stage} as {tuple(maps.shape[1:])} on an image of {height}x{width}; "
                    f"its declared tap is {(tap.channels, h, w)}"
                )
            stages[stage] = maps
        return stages


class PlainViT(nn.Module):
    """A plain ViT of timm that gives the maps after each quarter of its blocks.

    Args:
        model: timm's whole network; it loses its pooling and its classifier.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        depth = len(model.blocks)
        self.levels = model.prune_intermediate_layers(
            [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)],
            prune_norm=hasattr(model, "neck"),  # of SAM: convolutions in front of the norm
        )
        self.model, self.feature_info = model, FeatureInfo(model.feature_info, self.levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W, whole patches -> four maps B C H/patch W/patch, each after the network's final norm (not of SAM)."""
        return self.model.forward_intermediates(images, indices=self.levels, norm=True, intermediates_only=True)


def _create(name: str, plain: bool, output_stride: int, drop_path: float, options: dict) -> nn.Module:
    """timm's feature network (``plain``: a ``PlainViT``); ValueError where it does not accept an option."""
    options = dict(options)
    if output_stride != 32:
        options["output_stride"] = output_stride
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        net = timm.create_model(name, pretrained=False, features_only=not plain, **options)
    except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"backbone {name!r} cannot be built with output_stride={output_stride}, drop_path={drop_path} "
            f"({str(error) or type(error).__name__}): a network that cannot dilate needs output_stride=32, a network "
            f"without stochastic depth needs drop_path=0"
        ) from error
    if not drop_path:  # the default of some networks of timm is 0.1
        for module in net.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    return PlainViT(net) if plain else net


def _undilate_second_convolutions(net: nn.Module) -> None:
    """As in mmsegmentation, where only the first convolution of a ResNet-18 block is dilated; no tensor shows this."""
    for name, module in net.named_modules():
        if name.endswith(".conv2"):
            module.dilation, module.padding = (1, 1), (1, 1)


def timm_names(name: str, features: Iterable[str]) -> dict[str, str | None]:
    """Each tensor of timm's whole network -> its name in the feature network, or None where this lacks it."""
    # A feature network has the modules of the whole one, some of them with '_' instead of '.' in their names.
    features = {key.removeprefix("model.").replace(".", "_"): key for key in features}
    name, options = DEEP_STEMS.get(name, (name, {}))
    return {key: features.get(key.replace(".", "_")) for key in timm.create_model(name, **options).state_dict()}


def timm_normalization(name: str) -> Normalization | None:
    """The normalisation that timm's weights of this network were trained with; None: timm has no weights of it."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.has_weights:
        return None
    mean, std = (tuple(round(255 * value, 3) for value in values) for values in (config.mean, config.std))
    return Normalization(mean, std)


def _pools_unpadded(module: nn.Module) -> bool:
    """Whether a layer is the pooling of timm's anti-aliased ('aa') variants, which rounds the grid down."""
    return isinstance(module, nn.AvgPool2d) and module.padding == 0 and not module.ceil_mode


def build_backbone(name: str, output_stride: int = 32, drop_path: float = 0.0) -> Backbone:
    """Builds a backbone with random weights.

    Args:
        name: one of ``BACKBONES`` (``mit_b0``..``mit_b5`` and your own), or any four-stage network of timm.

    Raises:
        ValueError: the name is unknown (the message gives the nearest ones), or the network does not support dilation
            or stochastic depth.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}; expected 8, 16 or 32")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is {drop_path}; expected 0 <= drop_path < 1")
    if name in BACKBONES:
        return BACKBONES[name](output_stride, drop_path)
    return TimmBackbone(name, output_stride, drop_path)
