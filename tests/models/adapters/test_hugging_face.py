"""Networks of Hugging Face: every family gives what its own library computes from the same folder."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import build_wrapped
from models.adapters.hugging_face import class_scores
from models.inference import resize, view_logits
from tests.models.adapters.networks import NAMES, SEMANTIC, UNIVERSAL, processor_of, save_network

pytest.importorskip("transformers", reason='needs pip install ".[transformers]"')


def images(size=(64, 64), batch=2) -> torch.Tensor:
    return torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixel_values(family: str, x: torch.Tensor) -> torch.Tensor:
    """What the library's own processor makes of the images."""
    pictures = [np.moveaxis(image.numpy(), 0, -1) for image in x]
    found = processor_of(family)(images=pictures, return_tensors="pt", do_resize=False, do_center_crop=False)
    return found["pixel_values"]


@pytest.mark.parametrize("family", SEMANTIC)
def test_a_semantic_network_equals_its_librarys_post_processing(family, tmp_path):
    original = save_network(family, tmp_path)
    model, report = build_wrapped(f"transformers:{tmp_path}")
    with torch.no_grad():
        outputs = original(pixel_values=pixel_values(family, images()))
        found = resize(view_logits(model, images()), (64, 64))
    expected = processor_of(family).post_process_semantic_segmentation(
        outputs, target_sizes=[(64, 64)] * 2, return_segmentation_scores=True
    )
    torch.testing.assert_close(
        found, torch.stack([each["segmentation_scores"] for each in expected]), atol=1e-4, rtol=0
    )
    assert found.std((0, 2, 3)).min() > 1e-3  # the images matter
    assert model.num_classes == 5
    assert report.metadata["class_names"] == list(NAMES)
    assert model.spec.family == ("cnn" if family in ("upernet-convnext", "mobilenet_v2") else "transformer")


@pytest.mark.parametrize("family", UNIVERSAL)
def test_a_universal_networks_scores_equal_its_librarys_post_processing(family, tmp_path):
    """Those of the library are on the grid of the masks too, or on a fixed one, which the masks are given here."""
    original = save_network(family, tmp_path)
    model, _ = build_wrapped(f"transformers:{tmp_path}")
    given = {}
    if family == "oneformer":  # single letters of 'the task is semantic' between the start and the end
        words = ["the", "task", "is", "semantic"]
        letters = [ord(c) - 97 + 26 * (i == len(word) - 1) for word in words for i, c in enumerate(word)]
        given["task_inputs"] = torch.tensor([[52, *letters, 53, *[0] * (75 - len(letters))]]).expand(2, -1)
    with torch.no_grad():
        outputs = original(pixel_values=pixel_values(family, images()), **given)
        found = model(images()).logits
    torch.testing.assert_close(found, class_scores(outputs), atol=1e-4, rtol=0)

    options = {"size": {"shortest_edge": 16, "longest_edge": 16}, "target_sizes": [(16, 16)] * 2}
    if family == "mask2former":
        masks = outputs["masks_queries_logits"]
        outputs["masks_queries_logits"] = F.interpolate(masks, (384, 384), mode="bilinear", align_corners=False)
    expected = processor_of(family).post_process_semantic_segmentation(
        outputs, return_segmentation_scores=True, **(options if family == "eomt" else {})
    )
    expected = torch.stack([each["segmentation_scores"] for each in expected])
    torch.testing.assert_close(class_scores(outputs).exp(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.softmax(1).sum(1), torch.ones(2, 16, 16))
    assert found.shape == (2, 5, 16, 16)  # without the class of no object


@pytest.mark.parametrize(
    ("family", "channels", "strides"),
    [
        ("segformer", [8, 16, 24, 32], [4, 8, 16, 32]),
        ("upernet-swin", [8, 16, 32, 64], [4, 8, 16, 32]),
        ("mobilenet_v2", [8, 16, 32, 112], [4, 8, 16, 32]),
        ("mask2former", [8, 16, 32, 64], [4, 8, 16, 32]),
        ("beit", [16] * 4, [16] * 4),
        ("eomt", [16] * 4, [16] * 4),
    ],
)
def test_the_default_taps_are_four_stages(family, channels, strides, tmp_path):
    save_network(family, tmp_path)
    model, _ = build_wrapped(f"transformers:{tmp_path}")
    assert list(model.spec.taps) == ["stage1", "stage2", "stage3", "stage4"]
    assert [tap.channels for tap in model.spec.taps.values()] == channels
    assert [tap.stride for tap in model.spec.taps.values()] == strides


def test_tokens_become_the_grid_without_class_and_register_tokens(tmp_path):
    """The first hidden state of EoMT's ViT before its blocks: patches row by row after 1 + 2 tokens."""
    original = save_network("eomt", tmp_path)
    taps = {"patches": ":hidden_states.1"}
    model, _ = build_wrapped(f"transformers:{tmp_path}", taps=taps)
    x = pixel_values("eomt", images())
    with torch.no_grad():
        tokens = original(pixel_values=x, output_hidden_states=True).hidden_states[1]
        found = model(images()).taps["patches"]
    assert tokens.shape == (2, 3 + 16, 16)
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(found[:, :, row, column], tokens[:, 3 + 4 * row + column], atol=1e-5, rtol=0)


def test_sides_that_do_not_divide_are_padded_and_cropped_back(tmp_path):
    save_network("mask2former", tmp_path)
    model, _ = build_wrapped(f"transformers:{tmp_path}")
    found, padded = model(images((50, 71))), torch.full((2, 3, 64, 96), 0.0)
    padded[:] = model.mean  # zero after the normalisation
    padded[..., :50, :71] = images((50, 71)).float()
    torch.testing.assert_close(found.logits, model(padded).logits[..., :13, :18])
    assert found.taps["stage4"].shape[-2:] == (2, 3)


@pytest.mark.parametrize("key", ["auto_map", r"\u0061uto_map"])
def test_a_folder_that_asks_for_remote_code_is_refused(key, tmp_path):
    save_network("segformer", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSemanticSegmentation": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config).replace("auto_map", key))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: ...\n")
    with pytest.raises(ValueError, match=r"config.json asks for code of its own \(auto_map\), which is refused"):
        build_wrapped(f"transformers:{tmp_path}")
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_bin_with_more_than_tensors_is_refused(tmp_path):
    state = save_network("segformer", tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert build_wrapped(f"transformers:{tmp_path}")[1].loaded == len(state)
    torch.save({**state, "evil": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(ValueError, match="more than tensors, which is refused because reading it would execute code"):
        build_wrapped(f"transformers:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_missing_tensors_processors_tasks_and_folders_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    save_network("segformer", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {key: tensor for key, tensor in state.items() if "classifier" not in key}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"2 tensors are missing .*'decode_head.classifier.bias"):
        build_wrapped(f"transformers:{tmp_path}")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="does not say how its images are normalised: set normalization"):
        build_wrapped(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is a bert; expected a network of semantic or universal segmentation"):
        build_wrapped(f"transformers:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="folder /nowhere does not exist"):
        build_wrapped("transformers:/nowhere")


def test_half_precision_changes_the_scores_by_rounding_only(tmp_path):
    save_network("mask2former", tmp_path)
    model, _ = build_wrapped(f"transformers:{tmp_path}")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(images()).logits
    with torch.no_grad():
        difference = (half.softmax(1) - model(images()).logits.softmax(1)).abs()
    assert 0 < difference.mean() < 0.01
    assert half.dtype == torch.float32


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'transformers cannot be imported.*pip install "\.\[transformers\]"'):
        build_wrapped("transformers:x/y")
