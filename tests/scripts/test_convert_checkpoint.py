import os

import pytest
import torch

from models import build_model, load_student, load_weights, read_weights
from scripts.convert_checkpoint import main
from tests.models.oracles import randomize


class Payload:
    """Makes a file when it is unpickled: what a hostile checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def hostile(tmp_path):
    """A checkpoint as training frameworks write them: weights, and objects beside them."""
    state = randomize(build_model("mit_b0", "segformer", 5, width=16)).state_dict()
    torch.save({"state_dict": state, "history": Payload(tmp_path / "executed")}, tmp_path / "hostile.pth")
    return tmp_path / "hostile.pth"


def test_code_runs_only_where_it_is_trusted(hostile, tmp_path):
    out, model = tmp_path / "out.safetensors", build_model("mit_b0", "segformer", 5, width=16)
    for refused in (lambda: load_weights(model, hostile), lambda: read_weights(hostile)):
        with pytest.raises(ValueError, match=r"hostile\.pth cannot be read .*posix\.mkdir.*more than tensors.*--trust"):
            refused()
    with pytest.raises(SystemExit, match=r"error: .*hostile\.pth cannot be read"):
        main([str(hostile), str(out)])
    assert not (tmp_path / "executed").exists()
    assert not out.exists()

    main([str(hostile), str(out), "--trust"])
    assert (tmp_path / "executed").is_dir()
    load_weights(model, out)
    expected = randomize(build_model("mit_b0", "segformer", 5, width=16)).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_what_a_file_of_ours_says_of_itself_is_kept(tmp_path):
    about = {
        "network": {"backbone": "mit_b0", "head": "segformer", "width": 16},
        "class_names": ["a", "b"],
        "palette": [[1, 2, 3], [4, 5, 6]],
    }
    student = randomize(build_model("mit_b0", "segformer", 2, width=16)).state_dict()
    torch.save({"student": student, "about": about}, tmp_path / "best.pt")
    main([str(tmp_path / "best.pt"), str(tmp_path / "out.safetensors")])
    model, found = load_student(tmp_path / "out.safetensors")
    assert found == about
    assert torch.equal(model.state_dict()["head.classifier.weight"], student["head.classifier.weight"])


def test_an_exception_to_a_layouts_normalization(tmp_path):
    """CIRKD's files are taken to be trained on its BGR images; one that was not can be marked so."""
    file, out = tmp_path / "cirkd.pth", tmp_path / "out.safetensors"
    torch.save({"patch_embed1.proj.weight": torch.zeros(1), "linear_c1.proj.weight": torch.ones(2)}, file)
    assert "normalization" not in read_weights(file).metadata
    main([str(file), str(out), "--normalization", "imagenet"])
    assert read_weights(out).metadata["normalization"]["mean"] == [123.675, 116.28, 103.53]


def test_a_whole_pickled_network(tmp_path):
    network = torch.nn.Linear(2, 3)
    torch.save({"model": network}, tmp_path / "model.pth")
    main([str(tmp_path / "model.pth"), str(tmp_path / "out.safetensors"), "--trust"])
    assert torch.equal(read_weights(tmp_path / "out.safetensors").tensors["weight"], network.weight)


def test_one_tensor_under_two_names(tmp_path):
    tensor = torch.arange(3.0)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "tied.pth")
    main([str(tmp_path / "tied.pth"), str(tmp_path / "out.safetensors")])
    assert torch.equal(read_weights(tmp_path / "out.safetensors").tensors["b"], tensor)


@pytest.mark.parametrize(
    ("name", "content", "out", "message"),
    [
        ("absent.pth", None, "out.safetensors", r"absent\.pth does not exist"),
        ("x.pth", b"PK", "out.safetensors", r"x\.pth cannot be read as a checkpoint"),
        ("x.pth", b"", "taken.safetensors", r"taken\.safetensors exists already"),
    ],
)
def test_errors_name_the_file(tmp_path, name, content, out, message):
    (tmp_path / "taken.safetensors").write_bytes(b"old")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=rf"error: .*{message}"):
        main([str(tmp_path / name), str(tmp_path / out)])
    assert (tmp_path / "taken.safetensors").read_bytes() == b"old"


def test_another_suffix_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "x.pth"), str(tmp_path / "out.pth")])
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err
