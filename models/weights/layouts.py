"""The layouts of published weights files: how they name their tensors, and how these become ours.

A layout is recognised by keys that no other layout has. Its rules rename the keys. Where tensors must also be split,
joined or reordered, the layout has a function for it (``models.weights.conversion``).
"""

from models.base import NORMALIZATIONS
from models.weights.conversion import (
    Layout,
    Rule,
    State,
    fold_fuse_bias,
    hugging_face,
    linear_projections,
    mmseg_deeplabv3,
    mmseg_mit,
    mmseg_segformer,
    next_stage,
)

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
        finish=fold_fuse_bias,
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
        finish=linear_projections,
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
        finish=mmseg_segformer,
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (mmsegmentation)",
        "backbone",
        frozenset({"layers.0.0.projection.weight", "layers.3.2.weight"}),
        expects=MIT_NAMES,
        rules=MMSEG_MIT,
        finish=mmseg_mit,
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
        finish=mmseg_deeplabv3,
        normalization=RGB,
        output_stride=8,
    ),
    Layout(
        "mmsegmentation DeepLabV3",
        "all",
        frozenset({"backbone.conv1.weight", "backbone.layer1.0.conv3.weight", "decode_head.image_pool.1.conv.weight"}),
        expects="backbone='resnet50' or 'resnet101', head='deeplabv3_mmseg', output_stride=8, width=512",
        rules=(*_without("backbone"), *RESNET, *MMSEG_ASPP, *MMSEG_AUX),
        finish=mmseg_deeplabv3,
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
        finish=hugging_face,
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (Hugging Face)",
        "backbone",
        frozenset({"segformer.encoder.patch_embeddings.0.proj.weight"}),
        expects=MIT_NAMES,
        rules=HUGGING_FACE_MIT,
        finish=hugging_face,
        skip=("classifier.",),
    ),
    Layout(
        "SegFormer (transformers 5, state dict)",
        "all",
        frozenset({"segformer.stages.0.patch_embeddings.proj.weight", "decode_head.linear_fuse.weight"}),
        expects=MIT_SEGFORMER,
        rules=(*TRANSFORMERS_5_MIT, *HUGGING_FACE_HEAD),
        finish=hugging_face,
        normalization=RGB,
    ),
    Layout(
        "ImageNet MiT (transformers 5, state dict)",
        "backbone",
        frozenset({"segformer.stages.0.patch_embeddings.proj.weight"}),
        expects=MIT_NAMES,
        rules=TRANSFORMERS_5_MIT,
        finish=hugging_face,
        skip=("classifier.",),
    ),
)


def find_layout(state: State) -> Layout | None:
    """The layout whose markers are among the tensors; None where there is none (such as timm's names)."""
    return next((layout for layout in LAYOUTS if layout.markers <= state.keys()), None)
