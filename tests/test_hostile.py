"""What an attacker may hand over: files that would run code, lie about themselves, or never end."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import eval as evaluation
import train_kd
from models import build_model, load_student
from scripts import predict


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        import os

        return os.mkdir, (self.target,)


def refused(main, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return str(stop.value)


@pytest.mark.parametrize("way", ["resume", "pretrained", "weights", "eval", "load_student", "predict"])
def test_no_way_in_runs_the_code_of_a_checkpoint(experiments, tmp_path, way):
    """The other two, convert_checkpoint.py and load_checkpoint, have tests of their own."""
    target, path = tmp_path / "owned", tmp_path / "hostile.pt"
    torch.save({"student": {"w": torch.zeros(1)}, "step": Payload(target)}, path)
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    train = [experiments["hmkd"], "--work-dir", tmp_path / "run"]
    ways = {
        "resume": lambda: refused(train_kd.main, *train, "--resume", path),
        "pretrained": lambda: refused(train_kd.main, *train, "--cfg-options", f"student.pretrained={path}"),
        "weights": lambda: refused(train_kd.main, *train, "--cfg-options", f"teacher.weights={path}"),
        "eval": lambda: refused(evaluation.main, experiments["alone"], path),
        "load_student": lambda: str(pytest.raises(ValueError, load_student, path).value),
        "predict": lambda: refused(predict.main, path, tmp_path / "x.png", "--out", tmp_path / "out"),
    }
    assert str(path) in ways[way]()
    assert not target.exists()


@pytest.fixture(scope="module")
def described():
    """A small network's tensors, and the metadata of its file."""
    torch.manual_seed(0)
    about = {
        "network": {"backbone": "mit_b0", "head": "segformer", "width": 16},
        "class_names": ["a", "b", "c"],
        "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]],
    }
    return build_model("mit_b0", "segformer", 3, width=16).state_dict(), about


def network(**changes) -> str:
    return json.dumps({"backbone": "mit_b0", "head": "segformer", "width": 16} | changes)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("network", "not JSON"),
        ("network", "[" * 100000),
        ("network", network(width=-4)),
        ("network", network(width=10**9)),
        ("network", network(width=True)),
        ("network", network(dropout=float("nan"))),
        ("network", network(dropout=-1)),
        ("network", network(drop_path=float("nan"))),
        ("network", network(output_stride=-8)),
        ("network", network(backbone="hf-hub:somebody/something")),
        ("network", network(backbone="../../../etc/passwd")),
        ("network", network(surprise=1)),
        ("class_names", json.dumps(["\x1b[2Ja", "b", "c"])),
        ("class_names", json.dumps(["a" * 10**6, "b", "c"])),
        ("class_names", json.dumps([str(i) for i in range(1000)])),
        ("palette", "[[0, 0, 0]]"),
        ("palette", "[[0, 0, NaN], [1, 1, 1], [2, 2, 2]]"),
        ("palette", "[[0, 0, -1], [1, 1, 1], [2, 2, 999]]"),
        ("normalization", '{"mean": [1e999, 0, 0], "std": [1, 1, 1], "bgr": false}'),
        ("config", '{"eval": 3}'),
        ("class_names", "9" * 6000),
    ],
)
def test_metadata_that_lie_are_refused_by_the_files_name(described, tmp_path, key, text):
    state, about = described
    path = tmp_path / "student.safetensors"
    metadata = {name: json.dumps(value) for name, value in about.items()} | {key: text}
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}, metadata))
    with pytest.raises(ValueError, match=str(path)):
        load_student(path)


@pytest.mark.parametrize("length", [0, 2**20, 2**63])
def test_a_header_that_lies_about_its_length_is_refused(described, tmp_path, length):
    path = tmp_path / "student.safetensors"
    path.write_bytes(struct.pack("<Q", length) + save(described[0])[8:])
    with pytest.raises(ValueError, match=rf"{path} cannot be read"):
        load_student(path)


def test_a_folder_that_links_to_itself_is_searched_once(tmp_path):
    """Twice over: without a stop, paths of 40 links would be tried in all 2^40 orders."""
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a" / "x.png")
    for name in ("one", "two"):
        (folder / "a" / name).symlink_to(folder)
    (folder / "b").symlink_to(folder / "a")  # a link aside is another name, and its pictures have other overlays
    jobs = predict.find_jobs([folder], tmp_path / "out")
    assert [str(job.target.relative_to(tmp_path / "out")) for job in jobs] == ["a/x", "b/x"]


ABOUT = {"class_names": '["a", "b"]', "palette": "[[0, 0, 0], [9, 9, 9]]", "outputs": '["classes"]'}


def onnx_file(path, metadata, outside=None):
    """A file that takes the red plane for the class map; its constant may lie in a file ``outside``."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, kinds = onnx.helper, onnx.TensorProto
    plane = make.make_tensor("plane", kinds.INT64, [], [0])
    if outside is not None:
        plane.ClearField("int64_data")
        plane.data_location = kinds.EXTERNAL
        plane.external_data.add(key="location", value=outside)
    graph = make.make_graph(
        [make.make_node("Gather", ["images", "plane"], ["classes"], axis=1)],
        "red",
        [make.make_tensor_value_info("images", kinds.UINT8, [1, 3, 8, 8])],
        [make.make_tensor_value_info("classes", kinds.UINT8, [1, 8, 8])],
        [plane],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    make.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def test_the_onnx_file_of_these_tests_is_read(tmp_path):
    Image.new("RGB", (8, 8), (1, 0, 0)).save(tmp_path / "x.png")
    predict.main([str(onnx_file(tmp_path / "m.onnx", ABOUT)), str(tmp_path / "x.png"), "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"legend.png", "x.png"}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("class_names", "not JSON"), ("class_names", "[" * 100000), ("class_names", '{"a": 1}'),
        ("class_names", '["a"]'), ("class_names", "[1, 2]"), ("palette", "[[0, 0, 0]]"), ("palette", "7"),
        ("palette", '[["x", 0, 0], [0, 0, 0]]'), ("palette", "[[0, 0, 999], [0, 0, -4]]"),
        ("palette", "[[0, 0], [0, 0]]"),
    ],
)  # fmt: skip
def test_metadata_that_lie_in_an_onnx_file_are_refused(tmp_path, key, text):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    path = onnx_file(tmp_path / "m.onnx", ABOUT | {key: text})
    assert str(path) in refused(predict.main, path, tmp_path / "x.png", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_reads_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    path = onnx_file(tmp_path / "inner" / "m.onnx", ABOUT, outside="../secret")
    message = refused(predict.main, path, tmp_path / "x.png", "--out", tmp_path / "out")
    assert f"{path} cannot be read as an ONNX file" in message
