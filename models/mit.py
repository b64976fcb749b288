"""Mix Transformer B0-B5, the encoder of SegFormer (Xie et al., NeurIPS 2021, section 3.1 and table 6).

Parameters have the names of the original release, so its ImageNet encoders load without renaming.
"""

import math

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from models.base import BACKBONES, Backbone, Tap

# name: (channels of the four stages, blocks in each)
VARIANTS = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # keys and values are on a grid coarser by this factor
STRIDES = (4, 8, 16, 32)
MLP_RATIO = 4


def to_tokens(maps: Tensor) -> Tensor:
    """B C h w -> B (h w) C."""
    return maps.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """B (h w) C -> B C h w."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


class OverlapPatchEmbed(nn.Module):
    """Strided convolution with overlapping windows, then LayerNorm: B C h w -> tokens B N D and their grid."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(maps)
        return self.norm(to_tokens(maps)), maps.shape[-2:]


class Attention(nn.Module):
    """Multi-head self-attention; keys and values come from a grid reduced by a strided convolution (equation 2)."""

    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        context = tokens
        if self.reduction > 1:
            context = self.norm(to_tokens(self.sr(to_map(tokens, grid))))
        q = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # B heads N d
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # B heads M d
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution; its zero padding gives the tokens their positions."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_tokens(self.dwconv(to_map(tokens, grid)))


class MixFFN(nn.Module):
    """Linear, depthwise convolution, GELU, linear (equation 3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.dwconv = DepthwiseConv(MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), grid)))


class Block(nn.Module):
    """Pre-norm transformer block: B N C -> B N C."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixFFN(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), grid))


class MixTransformer(Backbone):
    """Four stages at strides 4, 8, 16 and 32; it cannot dilate.

    ``drop_path`` is the stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    family = "transformer"

    def __init__(self, channels: tuple[int, ...], depths: tuple[int, ...], drop_path: float = 0.0):
        super().__init__()
        self.tap_info = {f"stage{i}": Tap(c, s) for i, (c, s) in enumerate(zip(channels, STRIDES, strict=True), 1)}
        last = sum(depths) - 1
        rates = iter([drop_path * i / last for i in range(last + 1)])
        inputs = 3
        for i, (dim, depth) in enumerate(zip(channels, depths, strict=True)):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            blocks = [Block(dim, HEADS[i], REDUCTIONS[i], next(rates)) for _ in range(depth)]
            self.add_module(f"patch_embed{i + 1}", OverlapPatchEmbed(inputs, dim, kernel, stride))
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
            inputs = dim
        self.apply(_initialize)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """B 3 H W float -> ``stage1``..``stage4``, each B C ceil(H / stride) ceil(W / stride).

        Raises:
            ValueError: the image is smaller than one window of stage 1's reduction.
        """
        smallest = STRIDES[0] * (REDUCTIONS[0] - 1) + 1
        if min(images.shape[-2:]) < smallest:
            raise ValueError(f"the image is {tuple(images.shape[-2:])}; a MiT needs at least {smallest} pixels a side")
        stages, maps = {}, images
        for i in range(1, 5):
            tokens, grid = self.get_submodule(f"patch_embed{i}")(maps)
            for block in self.get_submodule(f"block{i}"):
                tokens = block(tokens, grid)
            maps = to_map(self.get_submodule(f"norm{i}")(tokens), grid)
            stages[f"stage{i}"] = maps
        return stages


def _register(name: str, channels: tuple[int, ...], depths: tuple[int, ...]) -> None:
    @BACKBONES.register(name)
    def build(output_stride: int, drop_path: float) -> MixTransformer:
        if output_stride != STRIDES[-1]:
            raise ValueError(f"backbone {name!r} cannot dilate to output_stride={output_stride}: set output_stride=32")
        return MixTransformer(channels, depths, drop_path)


for name, sizes in VARIANTS.items():
    _register(name, *sizes)


def _initialize(module: nn.Module) -> None:
    """The release's initialisation: truncated normal for linear layers, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
