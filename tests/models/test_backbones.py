import pytest
import timm
import torch

from models.backbones import ANY_SIZE, ROUNDS_UP, TRANSFORMERS, build_backbone
from models.base import Tap
from tests.models.oracles import randomize

STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Plain, dilated, anti-aliased pooling, patchify stem, NHWC tokens, 2x2 tokens, unpadded pooling.
KINDS = [
    ("resnet18", 32),
    ("resnet18", 16),
    ("resnet18", 8),
    ("resnetaa34d", 8),
    ("mit_b0", 32),
    ("tf_efficientnet_lite2", 16),
    ("convnext_atto", 32),
    ("convnext_atto", 8),
    ("swin_tiny_patch4_window7_224", 32),
    ("swinv2_tiny_window8_256", 32),
    ("mobilevitv2_050", 16),
    ("vgg11", 32),
    ("pvt_v2_b0", 32),
]


def build_on_meta(name, output_stride):
    with torch.device("meta"):
        return build_backbone(name, output_stride).eval()


@pytest.mark.parametrize(("name", "output_stride"), KINDS)
def test_grids_are_the_declared_taps_at_any_size(name, output_stride):
    backbone = build_on_meta(name, output_stride)
    assert list(backbone.tap_info) == STAGES
    assert [tap.stride for tap in backbone.tap_info.values()] == [min(s, output_stride) for s in (4, 8, 16, 32)]
    for height, width in [(64, 96), (65, 97), (95, 34)]:
        stages = backbone(torch.empty(2, 3, height, width, device="meta"))
        assert list(stages) == STAGES
        for stage, (channels, stride) in backbone.tap_info.items():
            grid = ((height + stride - 1) // stride, (width + stride - 1) // stride)
            assert stages[stage].shape == (2, channels, *grid), (stage, height, width)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_padding_is_whole_cells_of_zeros_below_and_right(name):
    backbone = randomize(build_backbone(name)).eval()
    images = torch.randn(1, 3, 40, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :40, :70] = images
    with torch.no_grad():
        found, expected = backbone(images), backbone(padded)
    for stage in STAGES:
        torch.testing.assert_close(found[stage], expected[stage][..., : found[stage].shape[2], : found[stage].shape[3]])


# Class token; class and register tokens; neither; rotary positions and registers; rotary; class token without position;
# windows.
VITS = [
    ("vit_tiny_patch16_224", 16, 192),
    ("vit_small_patch14_reg4_dinov2", 14, 384),
    ("vit_base_patch16_siglip_224", 16, 768),
    ("vit_small_patch16_dinov3", 16, 384),
    ("eva02_tiny_patch14_224", 14, 192),
    ("deit3_small_patch16_224", 16, 384),
    ("samvit_base_patch16", 16, 768),
]


@pytest.mark.parametrize(("name", "patch", "channels"), VITS)
def test_all_taps_of_a_plain_vit_have_the_stride_of_its_patches_at_any_size(name, patch, channels):
    backbone = build_on_meta(name, 32)
    assert backbone.family == "transformer"
    assert backbone.tap_info == dict.fromkeys(STAGES, Tap(channels, patch))
    for height, width in [(64, 96), (65, 97), (300, 34)]:
        stages = backbone(torch.empty(2, 3, height, width, device="meta"))
        grid = (-(-height // patch), -(-width // patch))
        assert {stage: maps.shape for stage, maps in stages.items()} == dict.fromkeys(STAGES, (2, channels, *grid))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_a_plain_vit_is_timms_built_for_the_padded_size(name):
    """timm resamples the learnt positions there when it loads the weights, here in each forward pass."""
    backbone = randomize(build_backbone(name)).eval()
    patch = backbone.tap_info["stage4"].stride
    oracle = timm.create_model(name, img_size=(3 * patch, 5 * patch), num_classes=0).eval()
    state = {key.removeprefix("net.model."): tensor for key, tensor in backbone.state_dict().items()}
    oracle.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, oracle))
    images = torch.randn(2, 3, 3 * patch - 5, 5 * patch - 1)
    padded = torch.zeros(2, 3, 3 * patch, 5 * patch)
    padded[..., : images.shape[2], : images.shape[3]] = images
    seen = []
    for block in oracle.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(oracle.norm(output)))
    with torch.no_grad():
        found = backbone(images)
        oracle.forward_features(padded)
    for stage, depth in zip(STAGES, (2, 5, 8, 11), strict=True):  # of 12 blocks
        expected = seen[depth][:, oracle.num_prefix_tokens :].transpose(1, 2).unflatten(2, (3, 5))
        torch.testing.assert_close(found[stage], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_plain_vit_cannot_dilate_and_says_so(output_stride):
    with pytest.raises(ValueError, match=f"vit_tiny_patch16_224.*output_stride={output_stride}.*output_stride=32"):
        build_backbone("vit_tiny_patch16_224", output_stride)


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_resnet_is_timm_s_untouched(size):
    backbone = randomize(build_backbone("resnet18", 8)).eval()
    oracle = timm.create_model("resnet18", features_only=True, output_stride=8).eval()
    oracle.load_state_dict(backbone.net.state_dict())
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        for found, expected in zip(backbone(images).values(), oracle(images)[1:], strict=True):
            assert torch.equal(found, expected)


def test_nhwc_features_are_transposed_not_reshaped():
    backbone = randomize(build_backbone("swin_tiny_patch4_window7_224")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, raw = backbone(images)["stage2"], backbone.net(images)[1]
    assert raw.shape == (1, 8, 8, 192)
    assert found.shape == (1, 192, 8, 8)
    assert torch.equal(found[0, 5, 2, 3], raw[0, 2, 3, 5])


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet18", "cnn"),
        ("convnext_atto", "cnn"),
        ("tf_efficientnet_lite2", "cnn"),
        ("mit_b0", "transformer"),
        ("swin_tiny_patch4_window7_224", "transformer"),
        ("pvt_v2_b0", "transformer"),
    ],
)
def test_family(name, family):
    assert build_on_meta(name, 32).family == family


def test_tables_name_files_that_timm_has():
    files = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
    assert {*TRANSFORMERS, *ROUNDS_UP, *ANY_SIZE} <= files


@pytest.mark.parametrize("name", ["resnet18", "resnet101"])
def test_short_names_declare_their_taps(name):
    channels = {"resnet18": (64, 128, 256, 512), "resnet101": (256, 512, 1024, 2048)}[name]
    expected = dict(zip(STAGES, map(Tap, channels, (4, 8, 8, 8)), strict=True))
    assert build_on_meta(name, 8).tap_info == expected


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "mit_b0", "convnext_atto", "tf_efficientnet_lite2", "swin_tiny_patch4_window7_224"),
        *("vit_tiny_patch16_224", "vit_small_patch16_dinov3"),
    ],
)
def test_every_parameter_receives_gradient(name):
    backbone = randomize(build_backbone(name)).train()
    sum(maps.square().mean() for maps in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    dead = [key for key, weight in backbone.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert dead == []


def test_drop_path_is_what_was_asked_for():
    def rates(drop_path):
        with torch.device("meta"):
            backbone = build_backbone("swin_tiny_patch4_window7_224", drop_path=drop_path)
        return [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]

    assert max(rates(0.3)) == pytest.approx(0.3)
    assert max(rates(0.0)) == 0.0  # timm's own default is 0.1


@pytest.mark.parametrize("name", ["mit_b0", "swin_tiny_patch4_window7_224", "vgg11", "hrnet_w18_small"])
def test_one_that_cannot_dilate_says_so(name):
    with pytest.raises(ValueError, match=f"{name}.*cannot.*output_stride=8.*output_stride=32"):
        build_backbone(name, output_stride=8)


def test_one_without_stochastic_depth_says_so():
    with pytest.raises(ValueError, match=r"vgg11.*cannot.*drop_path=0\.1.*drop_path=0"):
        build_backbone("vgg11", drop_path=0.1)


def test_one_without_four_stages_says_so():
    with pytest.raises(ValueError, match=r"efficientvit_m0.*\[16, 32, 64\].*\[4, 8, 16, 32\]"):
        build_backbone("efficientvit_m0")


def test_one_whose_grid_differs_is_refused_and_not_used():
    backbone = build_on_meta("inception_v4", 32)  # unpadded convolutions
    with pytest.raises(ValueError, match="inception_v4.*stage1.*96x96.*declared"):
        backbone(torch.empty(1, 3, 96, 96, device="meta"))


@pytest.mark.parametrize(("name", "nearest"), [("resnet81", "resnet18"), ("mit_b7", "mit_b5"), ("zzzzzz", "resnet101")])
def test_unknown_name_offers_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'.*{nearest}"):
        build_backbone(name)


@pytest.mark.parametrize("output_stride", [0, 4, 64])
def test_output_stride_is_checked(output_stride):
    with pytest.raises(ValueError, match=f"output_stride is {output_stride}; expected 8, 16 or 32"):
        build_backbone("resnet18", output_stride)


@pytest.mark.parametrize("drop_path", [-0.1, 1.0])
def test_drop_path_is_checked(drop_path):
    with pytest.raises(ValueError, match="drop_path"):
        build_backbone("mit_b0", drop_path=drop_path)
