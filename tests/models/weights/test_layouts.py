"""Files of other releases, loaded here, compute what they compute there."""

import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from models import Weights, build_model, count_classes, load_read_weights, load_weights
from models.weights.layouts import LAYOUTS
from tests.models import foreign
from tests.models.oracles import randomize, rename

K = 5
IMAGES = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def imagenet_rgb(images: Tensor) -> Tensor:
    """torchvision's; the others' are the same in 0..255."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def cirkd_bgr(images: Tensor) -> Tensor:
    return images[:, [2, 1, 0]].float() - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(3, 1, 1)


def torchvision_deeplabv3(depth: int, classes: int) -> nn.Module:
    build = getattr(torchvision.models.segmentation, f"deeplabv3_resnet{depth}")
    return build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)


def hugging_face(size: str, classes: int, width: int) -> nn.Module:
    channels, depths = foreign.MITS[size]
    config = transformers.SegformerConfig(
        depths=depths, hidden_sizes=channels, decoder_hidden_size=width, num_labels=classes
    )
    return transformers.SegformerForSemanticSegmentation(config)


class Network(NamedTuple):
    """A whole network of a release.

    Attributes:
        layout: what its files should be recognised as.
        build: classes -> the network.
        ours: arguments of ``build_model``.
        classifier: the layer whose input is our 'head' tap and whose output our logits.
        aux: the same of its auxiliary head.
        skipped: keys that a file has for nothing.
    """

    layout: str
    build: Callable[[int], nn.Module]
    ours: dict
    classifier: str
    aux: str | None = None
    skipped: tuple[str, ...] = ()


def cirkd_deeplabv3(depth: int, deep: bool, width: int = 512) -> Network:
    return Network(
        "CIRKD DeepLabV3, deep stem" if deep else "CIRKD DeepLabV3",
        lambda classes: foreign.CIRKDDeepLabV3(depth, deep, classes, width),
        {
            "backbone": f"resnet{depth}{'s' * deep}",
            "head": "deeplabv3",
            "output_stride": 8,
            "width": width,
            "aux": True,
            "normalization": "caffe_bgr",
        },
        "head.block.4",
        "auxlayer.block.4",
    )


def mmseg_deeplabv3(depth: int, deep: bool, width: int = 512) -> Network:
    return Network(
        "mmsegmentation DeepLabV3, deep stem" if deep else "mmsegmentation DeepLabV3",
        lambda classes: foreign.MMSegDeepLabV3(depth, deep, classes, width),
        {
            "backbone": f"resnet{depth}{'c' * deep}",
            "head": "deeplabv3_mmseg",
            "output_stride": 8,
            "width": width,
            "aux": True,
        },
        "decode_head.conv_seg",
        "auxiliary_head.conv_seg",
    )


def torchvision_network(depth: int) -> Network:
    return Network(
        "torchvision DeepLabV3",
        partial(torchvision_deeplabv3, depth),
        {"backbone": f"resnet{depth}", "head": "deeplabv3", "output_stride": 8, "width": 256, "aux": True},
        "classifier.4",
        "aux_classifier.4",
    )


def segformers(size: str, width: int, mmseg_width: int = 256) -> list[Network]:
    ours = {"backbone": f"mit_{size}", "head": "segformer", "width": width}
    return [
        Network(
            "CIRKD SegFormer",
            lambda classes: foreign.CIRKDSegFormer(size, classes, width),
            ours | {"normalization": "caffe_bgr"},
            "linear_pred",
        ),
        Network(
            "SegFormer (NVlabs)",
            lambda classes: foreign.NVlabsSegFormer(size, classes, width),
            ours,
            "decode_head.linear_pred",
            skipped=("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"),
        ),
        Network(
            "mmsegmentation SegFormer",
            lambda classes: foreign.MMSegSegFormer(size, classes, mmseg_width),
            {"backbone": f"mit_{size}", "head": "segformer_mmseg", "width": mmseg_width},
            "decode_head.conv_seg",
        ),
        Network(
            "SegFormer (transformers 5, state dict)",
            lambda classes: hugging_face(size, classes, width),
            ours,
            "decode_head.classifier",
        ),
    ]


# Small, one of each layout.
NETWORKS = [
    torchvision_network(50),
    cirkd_deeplabv3(18, deep=True, width=32),
    cirkd_deeplabv3(18, deep=False, width=32),
    mmseg_deeplabv3(18, deep=True, width=32),
    mmseg_deeplabv3(50, deep=False, width=32),
    *segformers("b0", width=16, mmseg_width=24),
]
# The four networks of the experiments at their sizes, in every layout that has them.
MISSION = [
    torchvision_network(101),
    *(cirkd_deeplabv3(depth, deep) for depth in (18, 101) for deep in (True, False)),
    mmseg_deeplabv3(18, deep=True, width=128),
    *(mmseg_deeplabv3(101, deep) for deep in (True, False)),
    *segformers("b0", width=256),
    *segformers("b4", width=768),
]


def name(network: Network) -> str:
    return f"{network.layout} {network.ours['backbone']}"


def meta(build: Callable, *arguments, **settings) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments, **settings)


def load(model: nn.Module, state: dict[str, Tensor], part: str = "all"):
    """As from a file, without one: on the meta device, say."""
    return load_read_weights(model, Weights("theirs.pth", state, {}, None), part)


def save(path, content):
    torch.save(content, path)
    return path


def watch(module: nn.Module) -> list[Tensor]:
    """After a forward pass, the module's input and output."""
    seen = []
    module.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].clone(), output]))
    return seen


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the largest value; and that is not nothing."""
    scale = expected.abs().max()
    assert scale > 0.1
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-4, rtol=0)


@torch.no_grad()
def assert_equal_networks(model: nn.Module, theirs: nn.Module, network: Network) -> None:
    model.eval(), theirs.eval()
    seen, seen_aux = watch(theirs.get_submodule(network.classifier)), []
    if network.aux:
        seen_aux = watch(theirs.get_submodule(network.aux))
    theirs((cirkd_bgr if "CIRKD" in network.layout else imagenet_rgb)(IMAGES))
    found = model(IMAGES)
    assert_close(found.taps["head"], seen[0])
    assert_close(found.logits, seen[1])
    if network.aux:
        assert_close(model.aux_head(found.taps["stage3"]), seen_aux[1])


@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_logits_head_and_aux_are_the_original_s(network, tmp_path):
    theirs = randomize(network.build(K))
    model = build_model(num_classes=K, **network.ours)
    report = load_weights(model, save(tmp_path / "theirs.pth", theirs.state_dict()))
    assert (report.layout, report.part, report.skipped) == (network.layout, "all", network.skipped)
    assert report.loaded == len(model.state_dict())
    assert_equal_networks(model, theirs, network)


@pytest.mark.parametrize("source", ["", "pytorch_model.bin", "moved.pth"])
def test_logits_are_those_of_a_file_that_transformers_wrote(source, tmp_path):
    """As its version 4 did: the folder, the file in it, the file away from its config.json."""
    theirs = randomize(hugging_face("b0", K, width=16))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "moved.pth"):
        save(tmp_path / name, state)
    network = segformers("b0", width=16)[-1]
    model = build_model(num_classes=K, **network.ours)
    report = load_weights(model, tmp_path / source)
    assert (report.layout, report.loaded) == ("SegFormer (Hugging Face)", len(model.state_dict()))
    assert_equal_networks(model, theirs, network)


class Encoder(NamedTuple):
    """An ImageNet encoder.

    Attributes:
        layout: what its files should be recognised as.
        build: () -> the network.
        run: the network, images -> its stages.
        ours: arguments of ``build_model``.
        extra: keys added to its file; its classifier, where the release has it and the network here does not.
        skipped: how many keys a file has for nothing.
    """

    layout: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], list[Tensor]]
    ours: dict
    extra: tuple[str, ...] = ()
    skipped: int = 2


def run(network: nn.Module, images: Tensor) -> list[Tensor]:
    return network(images)


def run_resnet(network: nn.Module, images: Tensor) -> list[Tensor]:
    return list(create_feature_extractor(network, [f"layer{i}" for i in range(1, 5)])(images).values())


def run_timm(network: nn.Module, images: Tensor) -> list[Tensor]:
    return network.forward_intermediates(images, intermediates_only=True)[-4:]


def run_vit(network: nn.Module, images: Tensor) -> list[Tensor]:
    padded = F.pad(images, (0, -images.shape[3] % 14, 0, -images.shape[2] % 14))
    return network.forward_intermediates(padded, indices=[2, 5, 8, 11], norm=True, intermediates_only=True)


def run_smp(network: nn.Module, images: Tensor) -> list[Tensor]:
    return network(images)[-4:]


def run_hugging_face(network: nn.Module, images: Tensor) -> list[Tensor]:
    return network(images, output_hidden_states=True).hidden_states


def hugging_face_encoder() -> nn.Module:
    return transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=7))


MIT_B0 = {"backbone": "mit_b0", "head": "segformer"}
ENCODERS = [
    Encoder(
        "ImageNet ResNet (torchvision, timm)",
        torchvision.models.resnet18,
        run_resnet,
        {"backbone": "resnet18", "head": "deeplabv3", "output_stride": 32},
    ),
    Encoder(
        "ImageNet ResNet (torchvision, timm)",
        partial(timm.create_model, "resnet50s"),
        run_timm,
        {"backbone": "resnet50s", "head": "deeplabv3", "output_stride": 32},
    ),
    Encoder(
        "ImageNet ResNet, deep stem (CIRKD)",
        partial(foreign.CIRKDDeepEncoder, 18),
        run,
        {"backbone": "resnet18s", "head": "deeplabv3", "output_stride": 8},
        extra=("fc.weight", "fc.bias"),
    ),
    Encoder(
        "ImageNet convnext_atto (timm)",
        partial(timm.create_model, "convnext_atto"),
        run_timm,
        {"backbone": "convnext_atto", "head": "segformer"},
        skipped=4,  # the last norm, the classifier
    ),
    Encoder(
        "ImageNet efficientnet_b0 (timm)",
        partial(timm.create_model, "efficientnet_b0"),
        run_timm,
        {"backbone": "efficientnet_b0", "head": "segformer"},
        skipped=8,  # the last convolution, its norm, the classifier
    ),
    Encoder(
        "ImageNet vit_small_patch14_reg4_dinov2 (timm)",
        partial(timm.create_model, "vit_small_patch14_reg4_dinov2", dynamic_img_size=True),
        run_vit,
        {"backbone": "vit_small_patch14_reg4_dinov2", "head": "segformer"},
        skipped=0,
    ),
    Encoder("ImageNet MiT (NVlabs)", partial(foreign.NVlabsMiT, "b0"), run, MIT_B0, ("head.weight", "head.bias")),
    Encoder("ImageNet MiT (NVlabs)", partial(smp.encoders.get_encoder, "mit_b0"), run_smp, MIT_B0, skipped=0),
    Encoder("ImageNet MiT (mmsegmentation)", partial(foreign.MMSegMiT, "b0"), run, MIT_B0, skipped=0),
    Encoder("ImageNet MiT (transformers 5, state dict)", hugging_face_encoder, run_hugging_face, MIT_B0),
]


def encoder_name(encoder: Encoder) -> str:
    return f"{encoder.layout} {encoder.ours['backbone']} {encoder.run.__name__}"


def encoder_state(theirs: nn.Module, encoder: Encoder) -> dict[str, Tensor]:
    return theirs.state_dict() | dict.fromkeys(encoder.extra, torch.zeros(1000))


@torch.no_grad()
def assert_equal_stages(model: nn.Module, theirs: nn.Module, run: Callable, size: tuple[int, int] = (64, 96)) -> None:
    """``size`` is in whole cells: some of timm's round their grids down."""
    images = IMAGES.repeat(1, 1, 4, 4)[..., : size[0], : size[1]]
    stages = run(theirs.eval(), imagenet_rgb(images))
    taps = model.eval()(images).taps
    for i, maps in enumerate(stages, 1):
        assert_close(taps[f"stage{i}"], maps)
    assert i == 4


@pytest.mark.parametrize("encoder", ENCODERS, ids=encoder_name)
def test_stages_are_the_original_s(encoder, tmp_path):
    theirs = randomize(encoder.build())
    model = build_model(num_classes=K, width=8, **encoder.ours)
    report = load_weights(model, save(tmp_path / "theirs.pth", encoder_state(theirs, encoder)), part="backbone")
    assert (report.layout, report.part, len(report.skipped)) == (encoder.layout, "backbone", encoder.skipped)
    assert report.loaded == len(model.backbone.state_dict())
    assert_equal_stages(model, theirs, encoder.run)


def test_stages_are_those_of_a_folder_that_transformers_wrote(tmp_path):
    theirs = randomize(hugging_face_encoder())
    theirs.save_pretrained(tmp_path)
    model = build_model(num_classes=K, width=8, **MIT_B0)
    report = load_weights(model, tmp_path, part="backbone")
    assert (report.layout, report.skipped) == ("ImageNet MiT (Hugging Face)", ("classifier.bias", "classifier.weight"))
    assert_equal_stages(model, theirs, run_hugging_face)
    with pytest.raises(ValueError, match=r"is an ImageNet encoder \(ImageNet MiT \(Hugging Face\)\)"):
        load_weights(model, tmp_path)


def encoder_of_convnext(network: nn.Module, images: Tensor) -> list[Tensor]:
    norms = network.backbone.hidden_states_norms
    norms.update({stage: nn.Identity() for stage in norms})  # they are no part of the encoder
    return network.backbone(images).feature_maps


def encoder_of_swin(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Without shifts where one window covers the map, as in the paper and in timm; UperNet asks for them there too."""
    settings = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    return network.backbone.swin(images, **settings).reshaped_hidden_states[-4:]


def upernet(config: Callable, **settings) -> nn.Module:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = config(out_features=stages, **settings)
    whole = transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=8, num_labels=K)
    return transformers.UperNetForSemanticSegmentation(whole)


def encoder_of_smp(network: nn.Module, images: Tensor) -> list[Tensor]:
    return network.encoder(images)[-4:]


def encoder_of_torchvision(network: nn.Module, images: Tensor) -> list[Tensor]:
    return run_resnet(network.backbone, images)


WHOLE = {  # whole networks: how to build one, its encoder, ours, and the layout of the encoder
    "smp resnet18": (partial(smp.Unet, "resnet18"), encoder_of_smp, "resnet18", "ImageNet ResNet (torchvision, timm)"),
    "smp mit_b0": (partial(smp.FPN, "mit_b0"), encoder_of_smp, "mit_b0", "ImageNet MiT (NVlabs)"),
    **{
        f"smp tu-{name}": (partial(smp.Unet, f"tu-{name}"), encoder_of_smp, name, f"ImageNet {name} (timm)")
        for name in ("mobilenetv4_conv_small", "convnext_atto", "repvit_m0_9")
    },
    "torchvision fcn": (
        partial(torchvision.models.segmentation.fcn_resnet50, weights=None, weights_backbone=None, num_classes=K),
        encoder_of_torchvision,
        "resnet50",
        "ImageNet ResNet (torchvision, timm)",
    ),
    "upernet convnext": (
        partial(upernet, transformers.ConvNextConfig, hidden_sizes=[96, 192, 384, 768]),
        encoder_of_convnext,
        "convnext_tiny",
        "ImageNet convnext_tiny (timm)",
    ),
    "upernet swin": (
        partial(upernet, transformers.SwinConfig),
        encoder_of_swin,
        "swin_tiny_patch4_window7_224",
        "ImageNet swin_tiny_patch4_window7_224 (timm)",
    ),
}


def build_whole(kind: str) -> nn.Module:
    settings = {"encoder_weights": None, "classes": K} if kind.startswith("smp") else {}
    return randomize(WHOLE[kind][0](**settings))


@pytest.mark.parametrize("kind", WHOLE)
def test_the_encoder_of_a_whole_network_is_taken_out(kind, tmp_path):
    """From the folder that its library writes, and from its tensors alone (of Hugging Face: as in that folder)."""
    _, run, backbone, layout = WHOLE[kind]
    theirs = build_whole(kind)
    if kind.startswith("torchvision"):
        source = save(tmp_path / "theirs.pth", theirs.state_dict())
    else:
        theirs.save_pretrained(tmp_path)
        source = tmp_path
    model = build_model(backbone, "fpn", K, width=8, output_stride=8 if kind.startswith("torchvision") else 32)
    report = load_weights(model, source, part="backbone")
    assert (report.layout, report.loaded) == (layout, len(model.backbone.state_dict()))
    assert any("head." in key or "decoder." in key or "classifier." in key for key in report.skipped)
    # timm decides where Swin shifts its windows when it is built, for images of this size.
    assert_equal_stages(model, theirs, run, size=(224, 224) if "swin" in kind else (64, 96))
    if not kind.startswith("torchvision"):
        again = build_model(backbone, "fpn", K, width=8)
        load_weights(again, save(tmp_path / "alone.pth", load_file(tmp_path / "model.safetensors")), part="backbone")
        for name, tensor in again.backbone.state_dict().items():
            assert torch.equal(tensor, model.backbone.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["smp resnet18", "torchvision fcn", "upernet swin"])
def test_a_whole_network_of_unknown_heads_is_no_teacher(kind, tmp_path):
    backbone = WHOLE[kind][2]
    with pytest.raises(ValueError, match="has no known layout: its keys are"):
        load_weights(build_model(backbone, "fpn", K), save(tmp_path / "a.pth", build_whole(kind).state_dict()))


def test_a_missing_tensor_of_an_encoder_inside_is_an_error(tmp_path):
    state = build_whole("smp resnet18").state_dict()
    del state["encoder.layer3.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"1 missing in the file: backbone\.net\.layer3\.0\.conv1\.weight"):
        load_weights(build_model("resnet18", "fpn", K), save(tmp_path / "a.pth", state), part="backbone")


def test_the_index_that_older_files_of_swin_hold_is_left_out(tmp_path):
    theirs = build_whole("upernet swin")
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    index = "backbone.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file(state | {index: torch.zeros(49, 49, dtype=torch.int64)}, tmp_path / "model.safetensors")
    model = build_model("swin_tiny_patch4_window7_224", "fpn", K, width=8)
    assert load_weights(model, tmp_path, part="backbone").loaded == len(model.backbone.state_dict())


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def convert(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    layout = next(layout for layout in LAYOUTS if layout.markers <= state.keys())
    return layout.name, layout.convert({key: t for key, t in state.items() if not key.startswith(layout.skip)})


@pytest.mark.parametrize("network", MISSION, ids=name)
def test_every_tensor_of_the_real_sizes_finds_its_place(network):
    layout, state = convert(meta(network.build, 19).state_dict())
    assert layout == network.layout
    assert shapes(state) == shapes(meta(build_model, num_classes=19, **network.ours).state_dict())


# transformers' names in memory -> those that it writes.
WRITTEN = [
    (r"\.stages\.(\d)\.patch_embeddings\.", r".encoder.patch_embeddings.\1."),
    (r"\.stages\.(\d)\.blocks\.", r".encoder.block.\1."),
    (r"\.stages\.(\d)\.layer_norm\.", r".encoder.layer_norm.\1."),
    (r"\.layernorm_before\.", ".layer_norm_1."),
    (r"\.layernorm_after\.", ".layer_norm_2."),
    (r"\.q_proj\.", ".self.query."),
    (r"\.k_proj\.", ".self.key."),
    (r"\.v_proj\.", ".self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".self.sr."),
    (r"\.sequence_reduction\.layer_norm\.", ".self.layer_norm."),
    (r"\.mlp\.fc", ".mlp.dense"),
    (r"\.linear_projections\.", ".linear_c."),
]


def test_every_tensor_of_a_file_of_transformers_finds_its_place(tmp_path):
    small = hugging_face("b0", 19, width=16)
    small.save_pretrained(tmp_path)
    assert shapes(rename(small.state_dict(), WRITTEN)) == shapes(load_file(tmp_path / "model.safetensors"))
    for size, width in (("b0", 256), ("b4", 768)):
        layout, state = convert(rename(meta(hugging_face, size, 19, width).state_dict(), WRITTEN))
        assert layout == "SegFormer (Hugging Face)"
        assert shapes(state) == shapes(meta(build_model, f"mit_{size}", "segformer", 19, width=width).state_dict())


@pytest.mark.filterwarnings("ignore:.*non-meta parameter")  # of the heads, which stay as they are
@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_backbone_of_a_whole_network(network):
    theirs = meta(network.build, K).state_dict()
    model = meta(build_model, num_classes=3, **network.ours | {"width": 8, "aux": False})
    report = load(model, theirs, part="backbone")
    assert report.loaded == len(model.backbone.state_dict())
    heads = [key for key in convert(theirs)[1] if not key.startswith("backbone.")]
    assert report.skipped == (*network.skipped, *heads)


@pytest.mark.filterwarnings("ignore:.*non-meta parameter")  # of the classifiers, which stay as they are
@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_body_of_a_network_of_other_classes(network):
    theirs = meta(network.build, K).state_dict()
    model = meta(build_model, num_classes=3, **network.ours)
    assert count_classes(model, Weights("theirs.pth", theirs, {}, None)) == K
    report = load(model, theirs, part="body")
    classifiers = [key for key in convert(theirs)[1] if ".classifier." in key]
    assert len(classifiers) == (4 if network.aux else 2)
    assert report.skipped == (*network.skipped, *classifiers)
    assert report.loaded == len(model.state_dict()) - len(classifiers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bias_before_a_norm_is_folded_into_its_mean(dtype):
    state = randomize(foreign.CIRKDSegFormer("b0", K, 16)).to(dtype).state_dict()
    folded = convert(state)[1]
    expected = state["linear_fuse.1.running_mean"].float() - state["linear_fuse.0.bias"].float()
    torch.testing.assert_close(folded["head.fuse.1.running_mean"], expected, rtol=0, atol=0)
    assert "head.fuse.0.bias" not in folded
    assert torch.equal(folded["head.fuse.0.weight"], state["linear_fuse.0.weight"])


def test_stages_are_concatenated_in_another_order():
    """Every channel's weight is the number of its stage, or of its branch."""
    stages = torch.arange(4.0).repeat_interleave(16).expand(16, -1)[..., None, None]
    state = randomize(foreign.MMSegSegFormer("b0", K, 16)).state_dict()
    found = convert(state | {"decode_head.fusion_conv.conv.weight": stages})[1]["head.fuse.0.weight"]
    assert found[0, ::16, 0, 0].tolist() == [3, 2, 1, 0]  # stage 4 first
    branches = torch.arange(5.0).repeat_interleave(32).expand(32, -1)[..., None, None].expand(-1, -1, 3, 3)
    state = meta(foreign.MMSegDeepLabV3, 18, True, K, 32).state_dict()
    found = convert(state | {"decode_head.bottleneck.conv.weight": branches})[1]["head.aspp.project.0.weight"]
    assert found[0, ::32, 0, 0].tolist() == [1, 2, 3, 4, 0]  # the image's mean last


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise([*NETWORKS, NETWORKS[0]])), ids=name)
def test_a_file_of_two_networks_is_neither(first, second):
    state = meta(first.build, K).state_dict() | meta(second.build, K).state_dict()
    for network in (first, second):
        model = meta(build_model, num_classes=K, **network.ours)
        with pytest.raises(ValueError, match=r"theirs\.pth \(.* does not fit the network"):
            load(model, state)


@pytest.mark.parametrize("encoder", ENCODERS, ids=encoder_name)
def test_an_encoder_is_no_segmentation_model(encoder):
    model = meta(build_model, num_classes=K, width=8, **encoder.ours)
    message = rf"theirs\.pth is an ImageNet encoder \({re.escape(encoder.layout)}\), not a segmentation model"
    with pytest.raises(ValueError, match=message):
        load(model, encoder_state(encoder.build().to("meta"), encoder))


@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_another_class_count_is_refused(network):
    model = meta(build_model, num_classes=3, **network.ours)
    with pytest.raises(ValueError, match=r"theirs\.pth was trained on 5 classes; the network has 3"):
        load(model, meta(network.build, K).state_dict())


@pytest.mark.parametrize("network", [network for network in NETWORKS if "aux" in network.ours], ids=name)
def test_another_output_stride_is_refused(network):
    model = meta(build_model, num_classes=K, **network.ours | {"output_stride": 16})
    message = rf"theirs\.pth: networks of the {network.layout} layout run at output_stride=8; the network has 16"
    with pytest.raises(ValueError, match=message):
        load(model, meta(network.build, K).state_dict())


@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_another_normalization_is_refused(network):
    theirs, other = network.ours.get("normalization", "imagenet"), {"imagenet": "caffe_bgr", "caffe_bgr": "imagenet"}
    model = meta(build_model, num_classes=K, **network.ours | {"normalization": other[theirs]})
    state = meta(network.build, K).state_dict()
    for part in ("all", "backbone"):
        with pytest.raises(ValueError, match=rf"theirs\.pth was trained on images .*: set normalization='{theirs}'"):
            load(model, state, part)


@pytest.mark.parametrize(
    ("network", "change", "hint"),
    [
        (cirkd_deeplabv3(18, deep=True), {"backbone": "resnet18"}, "backbone='resnet18s'"),
        (cirkd_deeplabv3(18, deep=False), {"backbone": "resnet18s"}, r"backbone='resnet18' \.\. 'resnet152'"),
        (cirkd_deeplabv3(18, deep=True), {"backbone": "resnet18c"}, "backbone='resnet18s'"),
        (cirkd_deeplabv3(18, deep=True), {"head": "deeplabv3_mmseg"}, "head='deeplabv3', output_stride=8, width=512"),
        (cirkd_deeplabv3(18, deep=True), {"width": 256}, "width=512"),
        (torchvision_network(50), {"backbone": "resnet101"}, "backbone='resnet50' or 'resnet101'"),
        (mmseg_deeplabv3(18, deep=True), {"backbone": "resnet18"}, "backbone='resnet18c'"),
        (mmseg_deeplabv3(18, deep=True), {"backbone": "resnet18s"}, "backbone='resnet18c'"),
        (mmseg_deeplabv3(50, deep=False), {"head": "deeplabv3"}, "head='deeplabv3_mmseg'"),
        (segformers("b0", 16)[1], {"head": "segformer_mmseg"}, "head='segformer', width=256"),
        (segformers("b0", 16)[1], {"backbone": "mit_b1"}, r"backbone='mit_b0' \.\. 'mit_b5'"),
        (segformers("b0", 16)[2], {"head": "segformer"}, "head='segformer_mmseg', width=256"),
    ],
)
def test_another_network_is_told_which_one_it_should_be(network, change, hint):
    model = meta(build_model, num_classes=K, **network.ours | change)
    message = rf"(?s)theirs\.pth \({network.layout} layout\) does not fit .*networks of this layout are .*{hint}"
    with pytest.raises(ValueError, match=message.replace("(NVlabs)", r"\(NVlabs\)")):
        load(model, meta(network.build, K).state_dict())


def test_the_undilated_convolutions_of_mmsegmentation_s_plain_resnet_18_are_no_other_s():
    """Every tensor of it would fit a ResNet-18 here, whose second convolutions are dilated."""
    theirs = meta(foreign.MMSegDeepLabV3, 18, False, K, 32).state_dict()
    model = meta(build_model, "resnet18", "deeplabv3_mmseg", K, output_stride=8, width=32, aux=True)
    for part in ("all", "backbone"):
        with pytest.raises(ValueError, match=r"(?s)theirs\.pth .*networks of this layout are not supported: their"):
            load(model, theirs, part)


def one_of_each_kind(state: dict[str, Tensor]) -> list[str]:
    """Keys that differ in more than the numbers of stages and blocks."""
    kinds = {re.sub(r"\d+(?=\..*\.)", "#", key): key for key in state}
    return [key for key in kinds.values() if not key.endswith("num_batches_tracked")]


def drop(state, key):
    del state[key]


def shrink(state, key):
    """To what would broadcast."""
    state[key] = torch.empty(1, device="meta")


def add(state, key):
    state[key + "_extra"] = state[key]


@pytest.mark.parametrize("network", {network.layout: network for network in reversed(NETWORKS)}.values(), ids=name)
def test_every_tensor_is_needed_and_none_beside_them(network):
    theirs = meta(network.build, K).state_dict()
    model = meta(build_model, num_classes=K, **network.ours)
    message = r"theirs\.pth (\(.* does not fit|has no known layout|was trained on 1 classes|is an ImageNet encoder)"
    for key in one_of_each_kind(theirs):
        for damage in (drop, shrink, add):
            if key not in network.skipped:
                state = dict(theirs)
                damage(state, key)
                with pytest.raises(ValueError, match=message):
                    load(model, state)
