"""Backbones by name: every four-stage network timm can take features from, and the Mix Transformers it lacks."""

import timm
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from models import mit  # noqa: F401  (registers the Mix Transformers)
from models.base import BACKBONES, Backbone, Normalization, Tap
from utils.names import unknown_name

# timm has ResNets with stems of three convolutions, 'c' of width 32 as mmsegmentation's and 's' of 64 as CIRKD's, from
# depth 50 on. These are the same at depth 18: timm's name and the options that make it so.
DEEP_STEMS = {
    "resnet18c": ("resnet18", {"stem_type": "deep", "stem_width": 32}),
    "resnet18s": ("resnet18", {"stem_type": "deep", "stem_width": 64}),
}

# The names of timm's networks that an error lists; every other name of timm works too.
OFFERED = ("resnet18", "resnet101", *DEEP_STEMS, "resnet101c", "resnet101s")

# What timm does not say of its own files (names in timm.models). A file absent here is a convolutional network, takes
# any size, and may round grids down.
TRANSFORMERS = {
    *("coat", "davit", "edgenext", "efficientformer", "efficientformer_v2", "efficientvit_mit", "gcvit", "hiera"),
    *("hieradet_sam2", "iformer", "lowformer", "maxxvit", "metaformer", "mobilevit", "mvitv2", "nextvit", "pvt_v2"),
    *("swiftformer", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "twins"),
}
# Grids of ceil(size / stride) at every size; others (patchify stems, unpadded pooling) drop what fills no whole cell.
ROUNDS_UP = {"efficientnet", "mobilenetv3", "pvt_v2", "regnet", "res2net", "resnet", "resnetv2"}
ANY_SIZE = {
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"strict_img_size": False},
}


class TimmBackbone(Backbone):
    """The last four feature levels of a timm network (strides 4, 8, 16, 32, or less where dilated).

    Args:
        name: timm's name, with or without a pretrained tag (no weights are fetched).
        output_stride: 8, 16 or 32; the stride at which the network stops shrinking, by dilation.
        drop_path: stochastic depth.

    Raises:
        ValueError: timm has no such network, or it cannot be built with these options, or has no four stages.
    """

    def __init__(self, name: str, output_stride: int, drop_path: float):
        super().__init__()
        timm_name, options = DEEP_STEMS.get(name, (name, {}))
        if not timm.is_model(timm_name):
            offered = [*OFFERED, *BACKBONES]
            raise unknown_name("backbone", name, [*offered, *timm.list_models()], shown=offered)
        self.name = name
        module = timm.models.model_entrypoint(timm_name).__module__.rpartition(".")[2]
        self.family = "transformer" if module in TRANSFORMERS else "cnn"
        self.net = _create(timm_name, output_stride, drop_path, ANY_SIZE.get(module, {}) | options)
        if name == "resnet18c":
            _undilate_second_convolutions(self.net)
        self.rounds_up = module in ROUNDS_UP and not any(map(_pools_unpadded, self.net.modules()))
        self.channels_last = getattr(self.net, "output_fmt", None) == "NHWC"

        strides = self.net.feature_info.reduction()[-4:]
        expected = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        if strides != expected:
            raise ValueError(f"backbone {name!r} has feature strides {strides}; heads need four stages at {expected}")
        channels = self.net.feature_info.channels()[-4:]
        self.tap_info = {f"stage{i}": Tap(c, s) for i, (c, s) in enumerate(zip(channels, strides, strict=True), 1)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """B 3 H W float -> ``stage1``..``stage4``, each B C ceil(H / stride) ceil(W / stride)."""
        height, width = images.shape[-2:]
        if not self.rounds_up:  # then whole cells only: the border is padded with zeros, the mean colour
            cell = self.tap_info["stage4"].stride
            images = F.pad(images, (0, (cell - width % cell) % cell, 0, (cell - height % cell) % cell))
        stages = {}
        for (stage, tap), maps in zip(self.tap_info.items(), self.net(images)[-4:], strict=True):
            if self.channels_last:
                maps = maps.permute(0, 3, 1, 2)
            # Not -(-a // b): in ONNX, division of negative integers rounds towards zero.
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


def _create(name: str, output_stride: int, drop_path: float, options: dict) -> nn.Module:
    """timm's feature network, with the error of one that refuses an option turned into ours."""
    options = dict(options)
    if output_stride != 32:
        options["output_stride"] = output_stride
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        net = timm.create_model(name, pretrained=False, features_only=True, **options)
    except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"backbone {name!r} cannot be built with output_stride={output_stride}, drop_path={drop_path} "
            f"({str(error) or type(error).__name__}): one that cannot dilate takes output_stride=32, one without "
            f"stochastic depth drop_path=0"
        ) from error
    if not drop_path:  # some of timm's networks default to 0.1
        for module in net.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    return net


def _undilate_second_convolutions(net: nn.Module) -> None:
    """mmsegmentation dilates the first convolution of a ResNet-18's block alone; no tensor of its files shows it."""
    for name, module in net.named_modules():
        if name.endswith(".conv2"):
            module.dilation, module.padding = (1, 1), (1, 1)


def timm_names(backbone: TimmBackbone) -> dict[str, str | None]:
    """For every tensor of timm's whole network, its name in ``backbone.net``, or None where features do without it."""
    # A feature network has the whole one's modules, some of them under names with '_' for '.'.
    features = {key.removeprefix("model.").replace(".", "_"): key for key in backbone.net.state_dict()}
    name, options = DEEP_STEMS.get(backbone.name, (backbone.name, {}))
    return {key: features.get(key.replace(".", "_")) for key in timm.create_model(name, **options).state_dict()}


def timm_normalization(backbone: TimmBackbone) -> Normalization | None:
    """Of the images that timm's own weights of this network were trained on; None where it has none."""
    config = timm.get_pretrained_cfg(backbone.name) if timm.is_model(backbone.name) else None
    if config is None or not config.has_weights:
        return None
    mean, std = (tuple(round(255 * value, 3) for value in values) for values in (config.mean, config.std))
    return Normalization(mean, std)


def _pools_unpadded(module: nn.Module) -> bool:
    """Whether a layer is the floor-rounding pooling of timm's anti-aliased ('aa') variants."""
    return isinstance(module, nn.AvgPool2d) and module.padding == 0 and not module.ceil_mode


def build_backbone(name: str, output_stride: int = 32, drop_path: float = 0.0) -> Backbone:
    """Builds a backbone with random weights.

    Args:
        name: one of ``BACKBONES`` (``mit_b0``..``mit_b5`` and your own), or any four-stage network of timm.
        output_stride: 8, 16 or 32.
        drop_path: stochastic depth in [0, 1).

    Raises:
        ValueError: unknown name (with the nearest ones), or a network that cannot dilate or drop paths.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}; expected 8, 16 or 32")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is {drop_path}; expected 0 <= drop_path < 1")
    if name in BACKBONES:
        return BACKBONES[name](output_stride, drop_path)
    return TimmBackbone(name, output_stride, drop_path)
