"""Teachers of Hugging Face in a run: class maps by their label names, what a dry run prints, the digest."""

import hashlib

import pytest
import torch

from engine.report import network_table
from tests.engine.test_teacher import images
from tests.engine.test_wrapped_teacher import build
from tests.models.adapters.networks import NAMES, save_network


def test_the_class_map_is_by_name_or_number_and_drops_what_it_does_not_name(experiments, tmp_path):
    save_network("segformer", tmp_path)
    assert NAMES == ("sky", "building", "pole", "road", "tree")
    start = f"teacher={{'_delete_': True, 'source': 'transformers:{tmp_path}', 'class_map': "
    maps = (
        "{'sky': 'far', 'tree': 'near', 'road': 'near'}}",
        "{0: 0, 4: 'near', 'road': 1}}",
        "('far', None, None, 'near', 1)}",
    )
    found = [
        build(experiments["hmkd"], start + class_map, names=("far", "near"))(images()).logits for class_map in maps
    ]
    own = build(experiments["hmkd"], start + "None}", names=NAMES)(images()).logits
    expected = torch.stack([own[:, 0], own[:, [3, 4]].logsumexp(1)], dim=1)
    for logits in found:
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ("None", r".*was trained on the classes \['sky', .*; the dataset has \['far', 'near'\]"),
        ("{'skies': 'far'}", "unknown class 'skies'; did you mean 'sky'"),
        ("{9: 'far'}", r"class_map names the classes \[9\]; .* has 0..4"),
        ("{'sky': 'fat'}", "unknown class 'fat'; did you mean 'far'"),
        ("{'sky': 'far'}", r"class_map maps no class of the network to the classes \[1\]"),
        ("('far', 'near')", "class_map has 2 entries; expected one for each of 5 classes"),
    ],
)
def test_a_wrong_class_map_is_named(experiments, tmp_path, class_map, message):
    save_network("segformer", tmp_path)
    options = f"teacher={{'_delete_': True, 'source': 'transformers:{tmp_path}', 'class_map': {class_map}}}"
    with pytest.raises(ValueError, match=f"x.py: teacher.class_map: {message}"):
        build(experiments["hmkd"], options, names=("far", "near"))


def test_a_dry_run_lists_what_cannot_be_counted(experiments, tmp_path):
    """EoMT reads values of its weights while it runs."""
    save_network("eomt", tmp_path)
    options = f"teacher={{'_delete_': True, 'source': 'transformers:{tmp_path}', 'class_map': {{0: 0, 1: 1}}}}"
    teacher = build(experiments["hmkd"], options, names=("far", "near"))
    assert "not counted" in network_table({"teacher": teacher}, (64, 64))


def test_the_digest_of_a_folder_is_that_of_its_weight_files(experiments, tmp_path):
    save_network("segformer", tmp_path)
    options = f"teacher={{'_delete_': True, 'source': 'transformers:{tmp_path}', 'class_map': {{0: 0, 1: 1}}}}"
    expected = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert build(experiments["hmkd"], options, names=("a", "b")).loaded.digest() == expected
