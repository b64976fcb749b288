"""Modules of torchvision, timm, smp and of users: logits, taps, weights, and errors that say what was returned."""

import hashlib
import math

import pytest
import timm
import torch
from torchvision.models import segmentation

from models import build_wrapped
from models.adapters.wrapped import as_map, four_stages
from models.base import Normalization
from tests.models.adapters.modules import Plain

PLAIN = Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
MODULES = "python:tests.models.adapters.modules"


def images(size=(64, 96), batch=2) -> torch.Tensor:
    return torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def build(form="tensor", **options):
    return build_wrapped(f"{MODULES}:plain", None, {"form": form}, normalization=PLAIN, **options)[0]


@pytest.mark.parametrize(
    ("form", "output"),
    [("tensor", None), ("dict", None), ("tuple", None), ("dict", "out"), ("tuple", 0), ("nested", "heads.0.masks")],
)
def test_the_logits_are_found_in_whatever_the_module_returns(form, output):
    model, x = build(form, output=output), images()
    assert torch.equal(model(x).logits, Plain(11, "tensor")(x / 255))
    assert (model.spec.num_classes, model.spec.logit_stride, model.spec.family) == (11, 4, "cnn")


def test_taps_are_found_by_module_name_and_in_what_a_module_returned():
    model = build("nested", output="heads.0.masks", prefix_tokens=2, taps={"early": "stem", "late": ":tokens"})
    x = images((50, 71))
    found, plain = model(x), Plain(11, "features")
    padded = torch.nn.functional.pad(x / 255, (0, 25, 0, 14))
    early, late = plain(padded)
    assert torch.equal(found.taps["early"], early[..., :13, :18])
    assert torch.equal(found.taps["late"], late[..., :4, :5])
    assert found.logits.shape == (2, 11, 13, 18)
    assert {name: tuple(tap) for name, tap in model.spec.taps.items()} == {"early": (6, 4), "late": (10, 16)}


def test_a_module_with_features_only_has_no_logits():
    model = build("features", output=False, taps={"late": ":1"})
    assert model(images()).logits is None
    assert model.spec.num_classes is None
    with pytest.raises(
        ValueError, match="gives neither logits nor taps: set taps. .*stem .6 x 16 x 16., .*deep .10 x 4 x 4."
    ):
        build("features", output=False)


def test_the_normalization_is_applied_in_the_networks_channel_order():
    statistics = Normalization((10.0, 20.0, 30.0), (1.0, 2.0, 4.0), bgr=True)
    model, _ = build_wrapped(f"{MODULES}:plain", normalization=statistics)
    x = images().float()
    expected = torch.stack([(x[:, 2] - 10) / 1, (x[:, 1] - 20) / 2, (x[:, 0] - 30) / 4], dim=1)
    assert torch.equal(model(x).logits, Plain(11, "tensor")(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "labels"}, "gives a tensor 1 x 16 x 16; expected logits B x K x h x w. The module returned a"),
        (
            {"form": "nested", "output": "heads.mask"},
            r"no 'mask' of 'heads.mask' in dict\(heads: list\(dict\(masks: a tensor 1 x 11 x 16 x 16\)\), tokens",
        ),
        ({"taps": {"late": "stam"}}, r"tap 'late': unknown module 'stam'; did you mean 'stem'\?.*classifier \(11 x 16"),
        ({"form": "nested", "output": "heads.0.masks", "taps": {"a": ":tokens"}}, "1 x 18 x 10, of which 0 come"),
        ({"taps": {"late": "classifier", "idle": "idle"}}, "tap 'idle': the module 'idle' does not run"),
        ({"pad_to": 3}, r"the logits: a tensor 1 x 11 x 16 x 16 on an image of 66 x 66; expected B x C x h x w"),
        ({"pad_to": 2, "taps": {"a": ":0"}}, "tap 'a': no '0' of '0' in a tensor 1 x 11 x 16 x 16"),
    ],
)  # fmt: skip
def test_a_wrong_piece_is_one_message_with_what_the_module_returned(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pyton:a.b:c", "unknown kind of source 'pyton'; did you mean 'python'"),
        ("timm:", "expected 'timm:' and a name or path"),
        ("timm:resnet81", "unknown network of timm 'resnet81'; did you mean 'resnet18'"),
        ("timm:resnet18", "timm:resnet18 has random weights: set weights to a file"),
        ("torchvision:fcn_resnet5", "unknown segmentation network of torchvision 'fcn_resnet5'; did you mean 'fcn_res"),
        (f"{MODULES}:plane", "module 'tests.models.adapters.modules' has no attribute 'plane'"),
        (
            f"{MODULES}:broken",
            "with arguments {}: RuntimeError: no checkpoint; expected python:package.module:function",
        ),
        (f"{MODULES}:number", "returned a int; expected a torch.nn.Module"),
        ("python:no.such:thing", "ModuleNotFoundError: No module named 'no'"),
        (f"{MODULES}:plain", "does not say how its images are normalised: set normalization"),
    ],
)
def test_a_wrong_source_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        build_wrapped(source)


def test_weights_of_any_file_are_loaded_strictly_and_one_prefix_is_stripped(tmp_path):
    state = {key: tensor + 1 for key, tensor in Plain(11, "tensor").state_dict().items()}
    path = tmp_path / "weights.pt"
    for name, prefix in (("plain", "module."), ("inside", ""), ("inside", "net.")):
        torch.save({"state_dict": {f"{prefix}{key}": tensor for key, tensor in state.items()}}, path)
        model, report = build_wrapped(f"{MODULES}:{name}", str(path), normalization=PLAIN)
        found = {key.removeprefix("net."): tensor for key, tensor in model.module.state_dict().items()}
        assert found.keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in found.items())
        assert report.loaded == len(state)
    torch.save({key: tensor for key, tensor in state.items() if "deep" not in key} | {"more": torch.ones(1)}, path)
    with pytest.raises(
        ValueError, match=r"2 missing in the file: deep.0.weight .*, deep.0.bias .10.\n  1 unknown .*: more"
    ):
        build_wrapped(f"{MODULES}:plain", str(path), normalization=PLAIN)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_torchvisions_networks_give_what_torchvision_computes(name, tmp_path):
    torch.manual_seed(0)
    original = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=7).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    model, report = build_wrapped(f"torchvision:{name}", str(tmp_path / "weights.pth"))
    x = images((64, 64), 1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, original((x / 255 - mean) / std)["out"], atol=1e-4, rtol=1e-4)
    assert report.digest() == hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    strides = [tap.stride for tap in model.spec.taps.values()]
    assert strides == {"fcn": [4, 8, 8, 8, 8], "dee": [4, 8, 16, 16, 16], "lra": [4, 8, 16, 16]}[name[:3]]


TIMM = {
    "vit_tiny_patch16_224": ({}, 16),
    "vit_small_patch14_reg4_dinov2": ({"embed_dim": 24, "depth": 8, "num_heads": 2, "img_size": 56}, 14),
    "vit_small_patch16_dinov3": ({"embed_dim": 24, "depth": 8, "num_heads": 2}, 16),
    "vit_base_patch16_siglip_512": ({"embed_dim": 24, "depth": 8, "num_heads": 2, "img_size": 64}, 16),
    "samvit_base_patch16": ({"embed_dim": 24, "depth": 8, "num_heads": 2, "img_size": 64}, 16),
    "eva02_tiny_patch14_224": ({"embed_dim": 24, "depth": 8, "num_heads": 2}, 14),
}


@pytest.mark.parametrize("name", TIMM)
def test_vits_of_timm_give_the_output_of_every_fourth_of_their_blocks(name, tmp_path):
    arguments, patch = TIMM[name]
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=3, **arguments).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    model, report = build_wrapped(f"timm:{name}", str(tmp_path / "weights.pt"), arguments)
    side = original.patch_embed.img_size[0] if hasattr(original.patch_embed, "img_size") else 64
    x, kept, n = images((side, side), 1), [], len(original.blocks)
    hooks = [
        original.blocks[n * i // 4 - 1].register_forward_hook(lambda _, __, out: kept.append(out)) for i in (1, 2, 3, 4)
    ]
    with torch.no_grad():
        original.forward_features((x - model.mean) / model.std)
        found = model(x)
    assert len(hooks) == len(kept) == 4
    cells = math.ceil(side / patch)
    for expected, taken in zip(kept, found.taps.values(), strict=True):
        if expected.ndim == 3:
            expected = expected[:, -cells * cells :].reshape(1, cells, cells, -1)
        torch.testing.assert_close(taken, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)
    assert found.logits is None
    assert [tap.stride for tap in model.spec.taps.values()] == [patch] * 4
    assert model.spec.family == "transformer"
    assert all(key.startswith(("head.", "fc.")) for key in report.skipped)
    assert model(images((50, 71))).taps["stage4"].shape[-2:] == (math.ceil(50 / patch), math.ceil(71 / patch))


def test_a_hierarchical_network_of_timm_gives_its_four_strides(tmp_path):
    original = timm.create_model("convnext_atto").eval()
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    model, _ = build_wrapped("timm:convnext_atto", str(tmp_path / "weights.pt"))
    assert [tuple(tap) for tap in model.spec.taps.values()] == [(40, 4), (80, 8), (160, 16), (320, 32)]
    assert model.spec.family == "cnn"


def test_four_stages_by_hand():
    assert four_stages([2, 4, 8, 16, 32]) == [1, 2, 3, 4]
    assert four_stages([16] * 12) == [2, 5, 8, 11]
    assert four_stages([16] * 3) == [0, 1, 2]


def test_tokens_of_an_oblong_image_are_read_row_by_row():
    tokens = torch.arange(2 + 2 * 3.0).view(1, 8, 1)
    assert as_map(tokens, (32, 48), 2, "t").tolist() == [[[[2, 3, 4], [5, 6, 7]]]]
    with pytest.raises(ValueError, match="8 tokens are no grid of square cells on an image of 32 x 48"):
        as_map(tokens, (32, 48), 0, "t")
