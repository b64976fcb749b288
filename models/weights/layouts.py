"""The layouts of published weights files: how they name their tensors, and how these become ours.

A layout is recognised by keys that no other layout has. Its rules rename the keys. Where tensors must also be split,
joined or reordered, the layout has a function for it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.base import NORMALIZATIONS, Normalization

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match], str]]


class Layout(NamedTuple):
    """How one family of files names its tensors.

    Attributes:
        name: for reports and errors.
        holds: ``'all'`` (a whole network) or ``'backbone'``.
        markers: a file that has all of these keys has this layout; the first match in ``LAYOUTS`` counts.
        expects: the arguments with which ``build_model`` builds these networks, for errors.
        rules: regular expressions and their replacements, each applied to every key, in order.
        finish: renamed tensors -> ours, where more than names differs.
        skip: prefixes, in the file, of tensors that our networks do not have.
        normalization: of the images these networks were trained on, where it is the same for all.
        output_stride: of these networks, where it is the same for all; no tensor shows it.
    """

    name: str
    holds: str
    markers: frozenset[str]
    expects: str = ""
    rules: tuple[Rule, ...] = ()
    finish: Callable[[State], State] = dict
    skip: tuple[str, ...] = ()
    normalization: Normalization | None = None
    output_stride: int | None = None

    def convert(self, state: State) -> State:
        """The tensors of a file under our names."""
        return self.finish({rename(key, self.rules): tensor for key, tensor in state.items()})


def rename(key: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def next_stage(template: str) -> Callable[[re.Match], str]:
    """A replacement with the number of the pattern's first group plus 1: stages count from 0 there, from 1 here."""
    return lambda match: template.format(int(match[1]) + 1)


def join(state: State, parts: tuple[str, ...], whole: str) -> State:
    """Concatenates tensors whose names differ in one component (``parts``) to one tensor (``whole``)."""
    joined = dict(state)
    for key in [key for key in state if f".{parts[0]}." in key]:
        names = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        shapes = {joined[name].shape if name in joined else None for name in names}
        if len(shapes) == 1 and joined[key].ndim:  # else they stay, and an error names them as unknown
            joined[key.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([joined.pop(name) for name in names])
    return joined


def _as_shape(state: State, pattern: str, ndim: int) -> State:
    """Weights of linear layers as those of 1x1 convolutions (``ndim`` 4), or the reverse (2)."""

    def reshape(tensor: Tensor) -> Tensor:
        if ndim == 4 and tensor.ndim == 2:
            return tensor[:, :, None, None]
        return tensor.flatten(1) if ndim == 2 and tensor.shape[2:] == (1, 1) else tensor

    return {key: reshape(tensor) if re.search(pattern, key) else tensor for key, tensor in state.items()}


def _reorder(state: State, key: str, order: tuple[int, ...]) -> State:
    """Splits the input channels of a convolution into equal blocks and reorders the blocks."""
    if key not in state or state[key].ndim != 4 or state[key].shape[1] % len(order):
        return state
    blocks = state[key].chunk(len(order), dim=1)
    return {**state, key: torch.cat([blocks[i] for i in order], dim=1)}


def _linear_projections(state: State) -> State:
    return _as_shape(state, r"^head\.project\..*weight$", 4)


def _fold_fuse_bias(state: State) -> State:
    """Subtracts the bias before a BatchNorm from its running mean, which computes the same without a bias."""
    state = _linear_projections(state)
    bias, mean = state.get("head.fuse.0.bias"), state.pop("head.fuse.1.running_mean", None)
    if bias is not None and mean is not None and bias.shape == mean.shape:
        state["head.fuse.1.running_mean"] = mean.float() - state.pop("head.fuse.0.bias").float()
    return state


def _hugging_face(state: State) -> State:
    return _linear_projections(join(state, ("k", "v"), "kv"))


def _mmseg_mit(state: State) -> State:
    """There ``in_proj`` is q, k and v in one, and the linear layers of the feed-forward are 1x1 convolutions."""
    split = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", key)
        if found and tensor.ndim and tensor.shape[0] % 3 == 0:
            third = tensor.shape[0] // 3
            split[f"{found[1]}q.{found[2]}"], split[f"{found[1]}kv.{found[2]}"] = tensor.split([third, 2 * third])
        else:
            split[key] = tensor
    return _as_shape(split, r"\.mlp\.fc[12]\.weight$", 2)


def _mmseg_segformer(state: State) -> State:
    """There the stages are concatenated from first to last, here from last to first."""
    return _reorder(_mmseg_mit(state), "head.fuse.0.weight", (3, 2, 1, 0))


def _mmseg_deeplabv3(state: State) -> State:
    """There the mean feature of the image comes first, here last."""
    return _reorder(state, "head.aspp.project.0.weight", (1, 2, 3, 4, 0))


TORCHVISION_HEAD = (
    (r"^classifier\.0\.convs\.4\.1\.", "head.aspp.convs.4.project.0."),
    (r"^classifier\.0\.convs\.4\.2\.", "head.aspp.convs.4.project.1."),
    (r"^classifier\.0\.", "head.aspp."),
    (r"^classifier\.1\.", "head.block.0."),
    (r"^classifier\.2\.", "head.block.1."),
    (r"^classifier\.4\.", "head.classifier."),
    (r"^aux_classifier\.([01])\.", r"aux_head.block.\1."),
    (r"^aux_classifier\.4\.", "aux_head.classifier."),
)
SEGFORMER_HEAD = (
    (r"^linear_c(\d)\.proj\.", r"head.project.stage\1."),
    (r"^linear_pred\.", "head.classifier."),
)
CIRKD_HEAD = (
    (r"^head\.aspp\.b0\.", "head.aspp.convs.0."),
    (r"^head\.aspp\.b([123])\.block\.", r"head.aspp.convs.\1."),
    (r"^head\.aspp\.b4\.gap\.1\.", "head.aspp.convs.4.project.0."),
    (r"^head\.aspp\.b4\.gap\.2\.", "head.aspp.convs.4.project.1."),
    (r"^head\.block\.4\.", "head.classifier."),
    (r"^auxlayer\.block\.4\.", "aux_head.classifier."),
    (r"^auxlayer\.", "aux_head."),
)
# Three convolutions, each with a BatchNorm, in a row; in timm the first two pairs are inside conv1.
DEEP_STEM = (
    (r"^bn1\.", "conv1.1."),
    (r"^conv1\.weight$", "conv1.0.weight"),
    (r"^conv2\.", "conv1.3."),
    (r"^bn2\.", "conv1.4."),
    (r"^conv3\.", "conv1.6."),
    (r"^bn3\.", "bn1."),
)
RESNET = ((r"^(conv1|bn1|layer\d)\.", r"backbone.net.\1."),)
MIT = ((r"^(patch_embed|block|norm)(\d)\.", r"backbone.\1\2."),)
MMSEG_MIT = (
    (r"^layers\.(\d)\.0\.projection\.", next_stage("backbone.patch_embed{}.proj.")),
    (r"^layers\.(\d)\.0\.norm\.", next_stage("backbone.patch_embed{}.norm.")),
    (r"^layers\.(\d)\.1\.", next_stage("backbone.block{}.")),
    (r"^layers\.(\d)\.2\.", next_stage("backbone.norm{}.")),
    (r"\.attn\.attn\.in_proj_", ".attn.in_proj_"),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
)
MMSEG_AUX = (
    (r"^auxiliary_head\.convs\.0\.conv\.", "aux_head.block.0."),
    (r"^auxiliary_head\.convs\.0\.bn\.", "aux_head.block.1."),
    (r"^auxiliary_head\.conv_seg\.", "aux_head.classifier."),
)
MMSEG_ASPP = (
    (r"^decode_head\.aspp_modules\.(\d)\.conv\.", r"head.aspp.convs.\1.0."),
    (r"^decode_head\.aspp_modules\.(\d)\.bn\.", r"head.aspp.convs.\1.1."),
    (r"^decode_head\.image_pool\.1\.conv\.", "head.aspp.convs.4.project.0."),
    (r"^decode_head\.image_pool\.1\.bn\.", "head.aspp.convs.4.project.1."),
    (r"^decode_head\.bottleneck\.conv\.", "head.aspp.project.0."),
    (r"^decode_head\.bottleneck\.bn\.", "head.aspp.project.1."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
)
# The names in files that Hugging Face writes; in memory the names differ.
HUGGING_FACE_MIT = (
    (r"^segformer\.encoder\.patch_embeddings\.(\d)\.proj\.", next_stage("backbone.patch_embed{}.proj.")),
    (r"^segformer\.encoder\.patch_embeddings\.(\d)\.layer_norm\.", next_stage("backbone.patch_embed{}.norm.")),
    (r"^segformer\.encoder\.block\.(\d)\.", next_stage("backbone.block{}.")),
    (r"^segformer\.encoder\.layer_norm\.(\d)\.", next_stage("backbone.norm{}.")),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.key\.", ".attn.k."),
    (r"\.attention\.self\.value\.", ".attn.v."),
    (r"\.attention\.self\.sr\.", ".attn.sr."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
)
HUGGING_FACE_HEAD = (
    (r"^decode_head\.linear_c\.(\d)\.proj\.", next_stage("head.project.stage{}.")),
    (r"^decode_head\.linear_fuse\.", "head.fuse.0."),
    (r"^decode_head\.batch_norm\.", "head.fuse.1."),
    (r"^decode_head\.classifier\.", "head.classifier."),
)
# The names in memory since transformers 5, found in files of a plain torch.save.
TRANSFORMERS_5_MIT = (
    (r"^segformer\.stages\.(\d)\.patch_embeddings\.proj\.", next_stage("backbone.patch_embed{}.proj.")),
    (r"^segformer\.stages\.(\d)\.patch_embeddings\.layer_norm\.", next_stage("backbone.patch_embed{}.norm.")),
    (r"^segformer\.stages\.(\d)\.blocks\.", next_stage("backbone.block{}.")),
    (r"^segformer\.stages\.(\d)\.layer_norm\.", next_stage("backbone.norm{}.")),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attn.sr."),
    (r"\.attention\.sequence_reduction\.layer_norm\.", ".attn.norm."),
    (r"^decode_head\.linear_projections\.(\d)\.proj\.", next_stage("head.project.stage{}.")),
)

RGB, BGR = NORMALIZATIONS["imagenet"], NORMALIZATIONS["caffe_bgr"]
MIT_NAMES = "backbone='mit_b0' .. 'mit_b5'"
MIT_SEGFORMER = f"{MIT_NAMES}, head='segformer', width=256 (B0, B1) or 768 (B2 to B5)"


def _without(prefix: str) -> tuple[Rule, ...]:
    return ((rf"^{prefix}\.", ""),)


OURS = Layout("hmkd", "all", frozenset({"head.classifier.weight"}))
# A segmentation network does not have the classifier of an ImageNet encoder (fc, head).
LAYOUTS = (
    OURS,
    Layout(
        "torchvision DeepLabV3",
        "all",
        frozenset({"backbone.conv1.weight", "classifier.0.project.0.weight"}),
        expects="backbone='resnet50' or 'resnet101', head='deeplabv3', output_stride=8, width=256",
        rules=(*_without("backbone"), *RESNET, *TORCHVISION_HEAD),
        normalization=RGB,
        output_stride=8,
    ),
    Layout(
        "CIRKD DeepLabV3, deep stem",
        "all",
        frozenset({"pretrained.conv3.weight", "head.aspp.b0.0.weight"}),
        expects="backbone='resnet18s', 'resnet50s' or 'resnet101s', head='deeplabv3', output_stride=8, width=512",
        rules=(*_without("pretrained"), *DEEP_STEM, *RESNET, *CIRKD_HEAD),
        normalization=BGR,
        output_stride=8,
    ),
    Layout(
        "CIRKD DeepLabV3",
        "all",
        frozenset({"pretrained.conv1.weight", "head.aspp.b0.0.weight"}),
        expects="backbone='resnet18' .. 'resnet152', head='deeplabv3', output_stride=8, width=512",
        rules=(*_without("pretrained"), *RESNET, *CIRKD_HEAD),
        normalization=BGR,
        output_stride=8,
    ),
    Layout(
        "ImageNet ResNet, deep stem (CIRKD)",
        "backbone",
        frozenset({"conv3.weight", "bn3.weight", "layer1.0.conv1.weight"}),
        expects="backbone='resnet18s', 'resnet50s' or 'resnet101s'",
        rules=(*DEEP_STEM, *RESNET),
        skip=("fc.",),
    ),
    Layout(
        "ImageNet ResNet (torchvision, timm)",
        "backbone",
        frozenset({"bn1.weight", "layer1.0.conv1.weight"}),
        expects="the ResNet of its name, such as backbone='resnet18' or 'resnet101'",
        rules=RESNET,
        skip=("fc.",),
    ),
    Layout(
        "CIRKD SegFormer",
        "all",
        frozenset({"patch_embed1.proj.weight", "linear_c1.proj.weight"}),
        expects=MIT_SEGFORMER,
        rules=(*MIT, *SEGFORMER_HEAD, (r"^linear_fuse\.", "head.fuse.")),
        finish=_fold_fuse_bias,
        normalization=BGR,
    ),
    Layout(
        "SegFormer (NVlabs)",
        "all",
        frozenset({"backbone.patch_embed1.proj.weight", "decode_head.linear_c1.proj.weight"}),
        expects=MIT_SEGFORMER,
        rules=(
            *_without("decode_head"),
            *SEGFORMER_HEAD,
            (r"^linear_fuse\.conv\.", "head.fuse.0."),
            (r"^linear_fuse\.bn\.", "head.fuse.1."),
        ),
        finish=_linear_projections,
        skip=("decode_head.conv_seg.", "backbone.head."),  # exist in the file but are never used
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (NVlabs)",
        "backbone",
        frozenset({"patch_embed1.proj.weight", "norm4.weight"}),
        expects=MIT_NAMES,
        rules=MIT,
        skip=("head.",),
    ),
    Layout(
        "mmsegmentation SegFormer",
        "all",
        frozenset({"backbone.layers.0.0.projection.weight", "decode_head.fusion_conv.conv.weight"}),
        expects=f"{MIT_NAMES}, head='segformer_mmseg', width=256",
        rules=(
            *_without("backbone"),
            *MMSEG_MIT,
            (r"^decode_head\.convs\.(\d)\.conv\.", next_stage("head.project.stage{}.0.")),
            (r"^decode_head\.convs\.(\d)\.bn\.", next_stage("head.project.stage{}.1.")),
            (r"^decode_head\.fusion_conv\.conv\.", "head.fuse.0."),
            (r"^decode_head\.fusion_conv\.bn\.", "head.fuse.1."),
            (r"^decode_head\.conv_seg\.", "head.classifier."),
        ),
        finish=_mmseg_segformer,
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (mmsegmentation)",
        "backbone",
        frozenset({"layers.0.0.projection.weight", "layers.3.2.weight"}),
        expects=MIT_NAMES,
        rules=MMSEG_MIT,
        finish=_mmseg_mit,
        skip=("head.",),
    ),
    Layout(
        "mmsegmentation DeepLabV3, deep stem",
        "all",
        frozenset({"backbone.stem.0.weight", "decode_head.image_pool.1.conv.weight"}),
        expects="backbone='resnet18c', 'resnet50c' or 'resnet101c', head='deeplabv3_mmseg', output_stride=8, "
        "width=512 (ResNet-18: 128)",
        rules=(
            *_without("backbone"),
            (r"^stem\.([0134])\.", r"backbone.net.conv1.\1."),
            (r"^stem\.6\.", "backbone.net.conv1.6."),
            (r"^stem\.7\.", "backbone.net.bn1."),
            *RESNET,
            *MMSEG_ASPP,
            *MMSEG_AUX,
        ),
        finish=_mmseg_deeplabv3,
        normalization=RGB,
        output_stride=8,
    ),
    Layout(
        "mmsegmentation DeepLabV3",
        "all",
        frozenset({"backbone.conv1.weight", "backbone.layer1.0.conv3.weight", "decode_head.image_pool.1.conv.weight"}),
        expects="backbone='resnet50' or 'resnet101', head='deeplabv3_mmseg', output_stride=8, width=512",
        rules=(*_without("backbone"), *RESNET, *MMSEG_ASPP, *MMSEG_AUX),
        finish=_mmseg_deeplabv3,
        normalization=RGB,
        output_stride=8,
    ),
    # No rules, so that it is refused: its tensors fit 'resnet18', which would compute something else.
    Layout(
        "mmsegmentation DeepLabV3, plain ResNet-18",
        "all",
        frozenset({"backbone.conv1.weight", "decode_head.image_pool.1.conv.weight"}),
        expects="not supported: their blocks dilate only the first convolution, those of 'resnet18' dilate both",
    ),
    Layout(
        "SegFormer (Hugging Face)",
        "all",
        frozenset({"segformer.encoder.patch_embeddings.0.proj.weight", "decode_head.linear_fuse.weight"}),
        expects=MIT_SEGFORMER,
        rules=(*HUGGING_FACE_MIT, *HUGGING_FACE_HEAD),
        finish=_hugging_face,
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (Hugging Face)",
        "backbone",
        frozenset({"segformer.encoder.patch_embeddings.0.proj.weight"}),
        expects=MIT_NAMES,
        rules=HUGGING_FACE_MIT,
        finish=_hugging_face,
        skip=("classifier.",),
    ),
    Layout(
        "SegFormer (transformers 5, state dict)",
        "all",
        frozenset({"segformer.stages.0.patch_embeddings.proj.weight", "decode_head.linear_fuse.weight"}),
        expects=MIT_SEGFORMER,
        rules=(*TRANSFORMERS_5_MIT, *HUGGING_FACE_HEAD),
        finish=_hugging_face,
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (transformers 5, state dict)",
        "backbone",
        frozenset({"segformer.stages.0.patch_embeddings.proj.weight"}),
        expects=MIT_NAMES,
        rules=TRANSFORMERS_5_MIT,
        finish=_hugging_face,
        skip=("classifier.",),
    ),
)


def find_layout(state: State) -> Layout | None:
    """The layout whose markers are among the tensors; None where there is none (such as timm's names)."""
    return next((layout for layout in LAYOUTS if layout.markers <= state.keys()), None)
