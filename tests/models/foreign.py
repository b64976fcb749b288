"""Networks of other releases, written from the structure that their files document: their names, their arithmetic.

Oracles of ``models/weights/layouts.py`` where the original does not install; nothing here comes from ``models``. A
whole network takes B 3 H W, normalised, to logits B K h w, an encoder to its four stages, each B C h w.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

RESNETS = {18: (BasicBlock, [2, 2, 2, 2]), 50: (Bottleneck, [3, 4, 6, 3]), 101: (Bottleneck, [3, 4, 23, 3])}
MITS = {"b0": ([32, 64, 160, 256], [2, 2, 2, 2]), "b4": ([64, 128, 320, 512], [3, 8, 27, 3])}  # channels, blocks
RATES = (12, 24, 36)


def unit(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, stride: int = 1) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def conv_module(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """A unit under the names of mmcv's ConvModule."""
    conv, bn, relu = unit(inputs, outputs, kernel, dilation)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn, activate=relu))


def resize(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[2:], mode="bilinear", align_corners=False)


# ResNets


class Encoder(ResNet):
    """ResNet at output stride 8 under torchvision's names, without classifier.

    The first block of a dilated stage has half its stage's dilation. ``both`` tells whether the second 3x3 convolution
    of a basic block is dilated too, as it is in CIRKD and timm and is not in mmsegmentation.
    """

    def __init__(self, depth: int, both: bool = True):
        super().__init__(*RESNETS[depth])
        del self.fc
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            for i, block in enumerate(stage):
                convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
                rates = iter((dilation if i else dilation // 2, dilation if both else 1))
                for conv in convs:
                    conv.stride = (1, 1)
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (next(rates),) * 2

    def enter(self, images: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(images)))

    def forward(self, images: Tensor) -> list[Tensor]:
        stages, maps = [], self.maxpool(self.enter(images))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
            stages.append(maps)
        return stages


class CIRKDDeepEncoder(Encoder):
    """Its stem has three convolutions, of 64, 64 and 128 channels, each with a name of its own."""

    def __init__(self, depth: int):
        super().__init__(depth)
        (self.conv1, self.bn1, _), (self.conv2, self.bn2, _) = unit(3, 64, 3, stride=2), unit(64, 64, 3)
        self.conv3, self.bn3, _ = unit(64, 128, 3)
        self.inplanes = 128
        block, blocks = RESNETS[depth]
        self.layer1 = self._make_layer(block, 64, blocks[0])

    def enter(self, images: Tensor) -> Tensor:
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            images = self.relu(bn(conv(images)))
        return images


class MMSegDeepEncoder(Encoder):
    """ResNetV1c: a sequence of three convolutions, of 32, 32 and 64 channels."""

    def __init__(self, depth: int):
        super().__init__(depth, both=False)
        del self.conv1, self.bn1
        self.stem = nn.Sequential(*unit(3, 32, 3, stride=2), *unit(32, 32, 3), *unit(32, 64, 3))

    def enter(self, images: Tensor) -> Tensor:
        return self.stem(images)


# DeepLabV3


class CIRKDASPP(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.b0 = nn.Sequential(*unit(inputs, width))
        for i, rate in enumerate(RATES, 1):
            branch = nn.Sequential(*unit(inputs, width, 3, rate))
            self.add_module(f"b{i}", nn.Sequential(OrderedDict(block=branch)))
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *unit(inputs, width))
        self.b4 = nn.Sequential(OrderedDict(gap=pool))
        self.project = nn.Sequential(*unit(5 * width, width), nn.Dropout(0.5))

    def forward(self, maps: Tensor) -> Tensor:
        pooled = resize(self.b4(maps), maps)
        return self.project(torch.cat([self.b0(maps), self.b1(maps), self.b2(maps), self.b3(maps), pooled], 1))


class CIRKDDeepLabV3(nn.Module):
    def __init__(self, depth: int, deep: bool, classes: int, width: int = 512):
        super().__init__()
        self.pretrained = (CIRKDDeepEncoder if deep else Encoder)(depth)
        last = 512 if depth == 18 else 2048

        def block(inputs: int, inner: int) -> nn.Sequential:
            return nn.Sequential(*unit(inputs, inner, 3), nn.Dropout(0.1), nn.Conv2d(inner, classes, 1))

        self.head = nn.Sequential(OrderedDict(aspp=CIRKDASPP(last, width), block=block(width, width)))
        self.auxlayer = nn.Sequential(OrderedDict(block=block(last // 2, last // 8)))

    def forward(self, images: Tensor) -> Tensor:
        *_, stage3, stage4 = self.pretrained(images)
        self.auxlayer(stage3)
        return self.head(stage4)


class MMSegASPPHead(nn.Module):
    def __init__(self, inputs: int, width: int, classes: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(width, classes, 1)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_module(inputs, width))
        self.aspp_modules = nn.ModuleList(
            [conv_module(inputs, width), *(conv_module(inputs, width, 3, rate) for rate in RATES)]
        )
        self.bottleneck = conv_module(5 * width, width, 3)

    def forward(self, maps: Tensor) -> Tensor:
        branches = [resize(self.image_pool(maps), maps), *(module(maps) for module in self.aspp_modules)]
        return self.conv_seg(self.bottleneck(torch.cat(branches, 1)))


class MMSegDeepLabV3(nn.Module):
    def __init__(self, depth: int, deep: bool, classes: int, width: int = 512):
        super().__init__()
        self.backbone = MMSegDeepEncoder(depth) if deep else Encoder(depth, both=False)
        last = 512 if depth == 18 else 2048
        self.decode_head = MMSegASPPHead(last, width, classes)
        aux = nn.Sequential(conv_module(last // 2, last // 8, 3))
        self.auxiliary_head = nn.Sequential(OrderedDict(convs=aux, conv_seg=nn.Conv2d(last // 8, classes, 1)))

    def forward(self, images: Tensor) -> Tensor:
        *_, stage3, stage4 = self.backbone(images)
        self.auxiliary_head(stage3)
        return self.decode_head(stage4)


# Mix Transformers, whose maps are B h w C inside


def convolve(conv: nn.Module, maps: Tensor) -> Tensor:
    """B h w C -> B h' w' C', by a module of B C h w."""
    return conv(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    def __init__(self, conv: str, inputs: int, dim: int, first: bool, eps: float):
        super().__init__()
        self.conv = conv
        self.add_module(conv, nn.Conv2d(inputs, dim, *((7, 4, 3) if first else (3, 2, 1))))
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(convolve(self.get_submodule(self.conv), maps))


class Attention(nn.Module):
    """What both releases share: keys and values come from a reduced map."""

    def __init__(self, dim: int, reduction: int, eps: float):
        super().__init__()
        self.reduced = reduction > 1
        if self.reduced:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim, eps)

    def forward(self, maps: Tensor) -> Tensor:
        context = self.norm(convolve(self.sr, maps)) if self.reduced else maps
        return self.attend(maps.flatten(1, 2), context.flatten(1, 2)).view_as(maps)


class NVlabsAttention(Attention):
    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__(dim, reduction, eps=1e-5)
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def attend(self, tokens: Tensor, context: Tensor) -> Tensor:
        q = self.q(tokens).unflatten(2, (self.heads, -1))
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).unbind(2)
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5).softmax(3)
        return self.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


class MMSegAttention(Attention):
    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__(dim, reduction, eps=1e-6)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)

    def attend(self, tokens: Tensor, context: Tensor) -> Tensor:
        return self.attn(tokens, context, context)[0]


class NVlabsFeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)))

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc2(F.gelu(convolve(self.dwconv, self.fc1(maps))))


class MMSegFeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        depthwise = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)
        self.layers = nn.Sequential(
            nn.Conv2d(dim, 4 * dim, 1), depthwise, nn.GELU(), nn.Dropout(0.0), nn.Conv2d(4 * dim, dim, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return convolve(self.layers, maps)


class Block(nn.Module):
    def __init__(self, dim: int, attn: nn.Module, feed_forward: str, module: nn.Module):
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6), attn
        self.feed_forward = feed_forward
        self.add_module(feed_forward, module)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps + self.attn(self.norm1(maps))
        return maps + self.get_submodule(self.feed_forward)(self.norm2(maps))


def run_stages(stages: list[tuple[nn.Module, nn.ModuleList, nn.Module]], images: Tensor) -> list[Tensor]:
    outputs, maps = [], images.permute(0, 2, 3, 1)
    for embed, blocks, norm in stages:
        maps = embed(maps)
        for block in blocks:
            maps = block(maps)
        maps = norm(maps)
        outputs.append(maps.permute(0, 3, 1, 2))
    return outputs


def sizes(size: str) -> list[tuple[int, int, int, int, int]]:
    """Of each stage: channels that come in, channels, blocks, heads, reduction."""
    channels, depths = MITS[size]
    return list(zip([3, *channels[:3]], channels, depths, (1, 2, 5, 8), (8, 4, 2, 1), strict=True))


class NVlabsMiT(nn.Module):
    def __init__(self, size: str):
        super().__init__()
        for i, (inputs, dim, depth, heads, reduction) in enumerate(sizes(size), 1):
            self.add_module(f"patch_embed{i}", PatchEmbed("proj", inputs, dim, i == 1, eps=1e-5))
            blocks = (
                Block(dim, NVlabsAttention(dim, heads, reduction), "mlp", NVlabsFeedForward(dim)) for _ in range(depth)
            )
            self.add_module(f"block{i}", nn.ModuleList(blocks))
            self.add_module(f"norm{i}", nn.LayerNorm(dim, 1e-6))

    def forward(self, images: Tensor) -> list[Tensor]:
        names = ("patch_embed", "block", "norm")
        return run_stages([[self.get_submodule(f"{name}{i}") for name in names] for i in range(1, 5)], images)


class MMSegMiT(nn.Module):
    def __init__(self, size: str):
        super().__init__()
        self.layers = nn.ModuleList()
        for i, (inputs, dim, depth, heads, reduction) in enumerate(sizes(size)):
            embed = PatchEmbed("projection", inputs, dim, i == 0, eps=1e-6)
            blocks = (
                Block(dim, MMSegAttention(dim, heads, reduction), "ffn", MMSegFeedForward(dim)) for _ in range(depth)
            )
            self.layers.append(nn.ModuleList([embed, nn.ModuleList(blocks), nn.LayerNorm(dim, 1e-6)]))

    def forward(self, images: Tensor) -> list[Tensor]:
        return run_stages(list(self.layers), images)


# SegFormer


def add_projections(head: nn.Module, size: str, width: int, classes: int) -> None:
    for i, channels in enumerate(MITS[size][0], 1):
        head.add_module(f"linear_c{i}", nn.Sequential(OrderedDict(proj=nn.Linear(channels, width))))
    head.linear_pred = nn.Conv2d(width, classes, 1)


def decode(head: nn.Module, stages: list[Tensor]) -> Tensor:
    """From the last stage to the first."""
    maps = []
    for i in (4, 3, 2, 1):
        projected = head.get_submodule(f"linear_c{i}")(stages[i - 1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        maps.append(resize(projected, stages[0]))
    return head.linear_pred(head.linear_fuse(torch.cat(maps, 1)))


class NVlabsSegFormer(nn.Module):
    """Its head inherits a classifier ``conv_seg``, of 128 channels, which nothing uses."""

    def __init__(self, size: str, classes: int, width: int):
        super().__init__()
        self.backbone, self.decode_head = NVlabsMiT(size), nn.Module()
        self.decode_head.conv_seg = nn.Conv2d(128, classes, 1)
        self.decode_head.linear_fuse = conv_module(4 * width, width)
        add_projections(self.decode_head, size, width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return decode(self.decode_head, self.backbone(images))


class CIRKDSegFormer(NVlabsMiT):
    """Encoder and head are one module, and the fusing convolution has a bias before its BatchNorm."""

    def __init__(self, size: str, classes: int, width: int):
        super().__init__(size)
        self.linear_fuse = nn.Sequential(nn.Conv2d(4 * width, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        add_projections(self, size, width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return decode(self, super().forward(images))


class MMSegSegFormerHead(nn.Module):
    def __init__(self, size: str, classes: int, width: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(width, classes, 1)
        self.convs = nn.ModuleList(conv_module(channels, width) for channels in MITS[size][0])
        self.fusion_conv = conv_module(4 * width, width)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """From the first stage to the last."""
        maps = [resize(conv(maps), stages[0]) for conv, maps in zip(self.convs, stages, strict=True)]
        return self.conv_seg(self.fusion_conv(torch.cat(maps, 1)))


class MMSegSegFormer(nn.Module):
    def __init__(self, size: str, classes: int, width: int = 256):
        super().__init__()
        self.backbone, self.decode_head = MMSegMiT(size), MMSegSegFormerHead(size, classes, width)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))
