"""The script as a user runs it on tiny networks, and the reader of its files."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from configs.schema import Experiment
from datasets import build_dataset
from engine.checkpoint import save_student
from engine.teacher import build_teacher
from models import build_model
from models.deploy import Deployable
from models.inference import predict, resize, view_logits
from models.onnx import OnnxModel
from scripts import export
from scripts._formats import PACKAGES, SUFFIXES, write_metadata
from utils.config import dump_config, load_config

SMALLER = ["eval.scales=(0.85,)"]
NETWORKS = {
    "resnet": {"backbone": "test_resnet", "head": "deeplabv3", "output_stride": 16, "width": 8},
    "pspnet": {"backbone": "test_resnet", "head": "pspnet", "output_stride": 16, "width": 8},
    "mit": {"backbone": "mit_b0", "head": "segformer", "width": 16},
    "efficientnet": {"backbone": "test_efficientnet", "head": "deeplabv3", "output_stride": 16, "width": 8},
}


@pytest.fixture(scope="module")
def validation(streets):
    return build_dataset("camvid", streets, "val.txt")


@pytest.fixture(scope="module")
def students(experiments, validation, tmp_path_factory):
    """(config, checkpoint, network) by name; random weights, centred on an image so that it shows several classes."""
    folder, made = tmp_path_factory.mktemp("students"), {}
    for name, network in NETWORKS.items():
        config, weights = folder / f"{name}.py", folder / f"{name}.safetensors"
        config.write_text(f"_base_ = [{experiments['hmkd']!r}]\nstudent = dict(_delete_=True, **{network!r})\n")
        torch.manual_seed(1)
        model = build_model(num_classes=11, **network).eval()
        with torch.no_grad():
            torch.nn.init.normal_(model.head.classifier.weight)
            model.head.classifier.bias -= model(validation[0]["image"].unsqueeze(0)).logits.mean((0, 2, 3))
        save_student(weights, model.state_dict(), {"network": network, "step": 7, "miou": 0.25})
        made[name] = str(config), weights, model
    return made


@pytest.fixture(scope="module")
def exported(students, tmp_path_factory):
    """The ResNet with both outputs, for one image of 48 x 64."""
    out = tmp_path_factory.mktemp("exported") / "net.onnx"
    run(*students["resnet"][:2], "--outputs", "classes", "logits", "--out", out)
    return out


@pytest.fixture
def ready(exported, monkeypatch):
    """The export itself is skipped: the network is the one already exported."""

    def copy(form, network, size, dynamic, folder, metadata):
        write_metadata(copied := Path(shutil.copy(exported, folder)), metadata)
        return copied

    monkeypatch.setattr(export, "save", copy)


def run(*arguments):
    export.main([str(argument) for argument in arguments])


def refused(*arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return str(stop.value)


def test_every_validation_image_gives_the_networks_classes_and_logits(exported, students, validation):
    model, onnx_model = students["resnet"][2], OnnxModel(exported)
    for i in range(len(validation)):
        images = validation[i]["image"].unsqueeze(0)
        outputs = onnx_model.run(images)
        with torch.inference_mode():
            logits = resize(view_logits(model, images), images.shape[-2:])
        np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-3, atol=1e-4)
        assert outputs["classes"].dtype == np.uint8
        assert (outputs["classes"] == predict(model, images).numpy()).mean() > 0.999
        assert np.array_equal(onnx_model(images), outputs["classes"])
        assert len(np.unique(outputs["classes"])) > 3


def test_one_file_that_says_what_it_is(exported, students, validation, tmp_path):
    assert [path.name for path in exported.parent.iterdir()] == ["net.onnx"]
    about = OnnxModel(shutil.copy(exported, tmp_path)).metadata
    config = load_config(students["resnet"][0], Experiment)
    assert about == {
        "class_names": list(validation.class_names),
        "palette": validation.palette.tolist(),
        "network": about["network"],
        "normalization": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr": False},
        "step": 7,
        "miou": 0.25,
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "eval": None,
        "scale": 1.0,
        "outputs": ["classes", "logits"],
        "precision": "float32",
    }
    assert NETWORKS["resnet"].items() <= about["network"].items()
    model = build_model(num_classes=11, **about["network"])  # what it says rebuilds the network
    model.load_state_dict(students["resnet"][2].state_dict())

    proto = onnx.load(exported)
    onnx.checker.check_model(proto)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)
    assert os.path.dirname(export.__file__).encode() not in exported.read_bytes()  # no path of this machine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mit", "pspnet", "efficientnet"])
def test_dynamic_takes_any_batch_and_size(name, students, tmp_path, capsys):
    config, weights, model = students[name]
    run(config, weights, "--dynamic", "--out", tmp_path / "net.onnx")
    assert "100.000% of pixels (1 of 3 x 3 x 37 x 49)" in capsys.readouterr().out
    exported = OnnxModel(tmp_path / "net.onnx")
    assert exported.shape == (None, 3, None, None)
    for shape in ((1, 3, 48, 64), (3, 3, 50, 77), (2, 3, 100, 35), (1, 3, 64, 64)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert (exported(images) == predict(model, images).numpy()).mean() > 0.999


def test_a_size_of_ones_own(students, tmp_path):
    config, weights, model = students["mit"]
    run(config, weights, "--size", 40, 56, "--out", tmp_path / "net.onnx")
    exported = OnnxModel(tmp_path / "net.onnx")
    assert exported.shape == (1, 3, 40, 56)
    images = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (exported(images) == predict(model, images).numpy()).mean() > 0.999


def test_half_is_half_the_size_and_takes_the_same_images(exported, students, validation, tmp_path):
    config, weights, model = students["resnet"]
    copy = shutil.copy(weights, tmp_path / "student.safetensors")
    run(config, copy, "--half")
    half = OnnxModel(tmp_path / "student.half.onnx")
    assert half.metadata["precision"] == "float16"
    dtypes = {tensor.data_type for tensor in onnx.load(half.path).graph.initializer if len(tensor.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in dtypes
    assert half.path.stat().st_size < 0.7 * exported.stat().st_size
    images = validation[0]["image"].unsqueeze(0)
    assert (half(images) == predict(model, images).numpy()).mean() > 0.99


def test_the_teacher(experiments, teacher_weights, validation, tmp_path):
    run(experiments["hmkd"], "--teacher", "--out", tmp_path / "teacher.onnx")
    exported, images = OnnxModel(tmp_path / "teacher.onnx"), validation[1]["image"].unsqueeze(0)
    assert exported.metadata["network"]["backbone"] == "test_resnet"
    model = build_model("test_resnet", "deeplabv3", 11, output_stride=16, width=8)
    export.load_trained(model, export.read_weights(teacher_weights), validation.class_names)
    assert (exported(images) == predict(model, images).numpy()).mean() > 0.999


def test_the_input_scale_of_a_teacher_is_in_its_file(experiments, validation, tmp_path):
    options = ["teacher.scale=0.75", "eval.scales=(0.5,)"]
    run(
        experiments["hmkd"], "--teacher", "--out", tmp_path / "t.onnx", "--outputs", "logits", "--cfg-options", *options
    )
    exported, images = OnnxModel(tmp_path / "t.onnx"), validation[1]["image"].unsqueeze(0)
    assert exported.metadata["network"]["scale"] == 0.75
    config = load_config(experiments["hmkd"], Experiment, options)
    teacher = build_teacher(config, "x.py", validation.class_names)
    expected = resize(teacher(resize(images, (24, 32))).logits, (48, 64))  # 48 x 64 pixels, first at eval's scale
    torch.testing.assert_close(torch.from_numpy(exported.run(images)["logits"]), expected, rtol=1e-4, atol=1e-5)


RUN_PT2 = """
import sys, numpy, torch
network = torch.export.load(sys.argv[1]).module()
images = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], network(images)[0].numpy())
assert not {"models", "engine", "scripts", "timm"} & sys.modules.keys()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pt2_file_runs_without_this_repository(name, students, tmp_path, capsys):
    """On any batch and size; a MiT needs larger images for that than these, so it is exported for one size."""
    config, weights, model = students[name]
    shapes = [(1, 3, 48, 64)] if name == "mit" else [(1, 3, 96, 128), (3, 3, 100, 154)]
    options = ["--cfg-options", *SMALLER] if name == "mit" else ["--dynamic", "--cfg-options", *SMALLER]
    run(config, weights, "--to", "torch", "--out", tmp_path / "net.pt2", *options)
    assert "torch.export and PyTorch agree on 100.000% of pixels" in capsys.readouterr().out
    for shape in shapes:
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        np.save(tmp_path / "images.npy", images.numpy())
        files = [str(tmp_path / name) for name in ("net.pt2", "images.npy", "classes.npy")]
        subprocess.run([sys.executable, "-c", RUN_PT2, *files], cwd=tmp_path, check=True)
        classes = np.load(files[-1])
        assert classes.dtype == np.uint8
        assert (classes == predict(model, images, scales=(0.85,)).numpy()).mean() > 0.999
    about = {"metadata.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=about)
    assert json.loads(about["metadata.json"])["scale"] == 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mit"])
def test_openvino_gives_the_networks_classes(name, students, validation, tmp_path, capsys):
    openvino = pytest.importorskip("openvino", reason='needs pip install ".[openvino]"')
    pytest.importorskip("nncf", reason='needs pip install ".[openvino]"')
    config, weights, model = students[name]
    run(config, weights, "--to", "openvino", "--dynamic", "--out", tmp_path / "net.xml", "--cfg-options", *SMALLER)
    assert "OpenVINO and PyTorch agree on" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    read = openvino.Core().read_model(tmp_path / "net.xml")
    assert json.loads(read.get_rt_info(["hmkd", "class_names"]).astype(str)) == list(validation.class_names)
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for i in range(len(validation)):
        images = validation[i]["image"].unsqueeze(0)
        assert (compiled(images.numpy())["classes"] == predict(model, images, scales=(0.85,)).numpy()).mean() > 0.999


@pytest.mark.slow
def test_openvino_int8_says_what_it_costs(students, tmp_path, capsys):
    openvino = pytest.importorskip("openvino", reason='needs pip install ".[openvino]"')
    pytest.importorskip("nncf", reason='needs pip install ".[openvino]"')
    run(*students["resnet"][:2], "--to", "openvino", "--int8", "static", "--out", tmp_path / "net.xml")
    read = openvino.Core().read_model(tmp_path / "net.xml")
    assert any(operation.get_type_name() == "FakeQuantize" for operation in read.get_ops())
    figures = json.loads(read.get_rt_info(["hmkd", "quantization"]).astype(str))
    assert figures["calibration_images"] == 8  # all that there are
    assert (
        f"changes the mIoU by {100 * (figures['miou_int8'] - figures['miou_float']):+.2f} points"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("form", "operation"), [("onnx", "aten.linalg_eig"), ("openvino", "aten.linalg_eig"), ("torch", "data-dependent")]
)
def test_a_network_that_cannot_be_converted_leaves_nothing(form, operation, students, tmp_path, monkeypatch):
    """The message names the operation that the converter does not have, or says what it cannot know."""
    for package in PACKAGES[form]:
        pytest.importorskip(package, reason=f'needs pip install ".[{form}]"')

    def unusual(self, images):
        if form == "torch":  # a loop over a number of pixels that no trace can know
            return (sum(images[0, 0].nonzero()),)
        return (torch.linalg.eigvals(images[:, 0, :8, :8].double()).real,)

    monkeypatch.setattr(Deployable, "forward", unusual)
    message = refused(*students["resnet"][:2], "--to", form, "--out", tmp_path / f"net{SUFFIXES[form]}")
    assert re.match(r"error: torch\.(onnx|export) of PyTorch \S+ cannot export this network: ", message)
    assert operation in message
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_openvinos_old_pair_whole(tmp_path, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    for folder, text in ((made, b"new"), (tmp_path, b"old")):
        for suffix in (".xml", ".bin"):
            (folder / f"net{suffix}").write_bytes(text)
    write, written = os.replace, []

    def full(source, target):
        written.append(target)
        if str(target).endswith(".bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*net\.bin"):
        export.write_parts(made / "net.xml", tmp_path / "net.xml")
    assert len(written) == 2  # the new .xml was complete beside its place
    assert (tmp_path / "net.xml").read_bytes() == (tmp_path / "net.bin").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"made", "net.xml", "net.bin"}


def test_the_earlier_command_still_exports(launch, students, tmp_path):
    done = launch("scripts/export_onnx.py", *students["resnet"][:2], "--out", tmp_path / "net.onnx")
    assert f"wrote {tmp_path / 'net.onnx'}" in done.stdout, done.stderr
    assert OnnxModel(tmp_path / "net.onnx").shape == (1, 3, 48, 64)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_int8_says_what_it_costs(kind, exported, students, validation, tmp_path, capsys):
    run(*students["resnet"][:2], "--int8", kind, "--out", tmp_path / "int8.onnx")
    out, quantized = capsys.readouterr().out, OnnxModel(tmp_path / "int8.onnx")
    about = quantized.metadata
    assert about["precision"] == "int8"
    assert about["quantization"]["kind"] == kind
    assert about["quantization"]["calibration_images"] == (8 if kind == "static" else 0)  # all that there are
    assert about["miou"] == about["quantization"]["miou_int8"]
    integers = {node.op_type for node in onnx.load(quantized.path).graph.node}
    assert integers & {"ConvInteger", "QuantizeLinear"}

    # Both figures again, counted naively.
    for name, model in (("float", OnnxModel(exported)), ("int8", quantized)):
        hits, union = np.zeros(11), np.zeros(11)
        for i in range(len(validation)):
            image, label = validation.load(i)
            prediction = model(image.transpose(2, 0, 1)[None])[0]
            prediction[label == 255] = 255
            for k in range(11):
                hits[k] += ((prediction == k) & (label == k)).sum()
                union[k] += ((prediction == k) | (label == k)).sum()
        miou = np.mean(hits[union > 0] / union[union > 0])
        assert about["quantization"][f"miou_{name}"] == pytest.approx(miou, abs=1e-9)
        assert f"mIoU {100 * miou:.2f} on 5 validation images" in out
    change = 100 * (about["quantization"]["miou_int8"] - about["quantization"]["miou_float"])
    assert f"changes the mIoU by {change:+.2f} points" in out


def test_the_configs_scale_is_built_in(students, validation, tmp_path, capsys):
    config, weights, model = students["resnet"]
    run(config, weights, "--out", tmp_path / "net.onnx", "--cfg-options", "eval.scales=(0.5,)")
    assert "note:" not in capsys.readouterr().out
    exported, images = OnnxModel(tmp_path / "net.onnx"), validation[0]["image"].unsqueeze(0)
    assert exported.metadata["scale"] == 0.5
    assert (exported(images) == predict(model, images, scales=(0.5,)).numpy()).mean() > 0.999
    assert (exported(images) == predict(model, images).numpy()).mean() < 0.99


def test_a_config_that_evaluates_otherwise_is_noted(ready, students, tmp_path, capsys):
    options = ["--cfg-options", "eval.scales=(0.5, 1.0)", "eval.flip=True"]
    run(*students["resnet"][:2], "--out", tmp_path / "net.onnx", *options)
    said = capsys.readouterr().out
    assert (
        "note: the config evaluates with mode=whole, scales=(0.5, 1.0), flip=True; the file sees whole images" in said
    )


def test_a_full_disk_leaves_the_old_file_whole(ready, students, tmp_path, monkeypatch):
    old = tmp_path / "net.onnx"
    old.write_bytes(b"the old file")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = refused(*students["resnet"][:2], "--out", old)
    assert message.startswith(f"error: cannot write {old} (No space left on device: ")
    assert message.endswith(" MiB are free); an earlier file is unchanged")
    assert old.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [old]


def test_a_file_that_disagrees_is_not_written(ready, students, tmp_path, monkeypatch):
    old = tmp_path / "net.onnx"
    old.write_bytes(b"the old file")
    monkeypatch.setattr(export, "predict", lambda model, images, scales: (predict(model, images) + 1) % 11)
    message = refused(*students["resnet"][:2], "--out", old)
    assert "agree on 0.000% of pixels (5 of 1 x 3 x 48 x 64); expected 99.9% or more: nothing was written" in message
    assert old.read_bytes() == b"the old file"


def test_wrong_checkpoints_and_configs_are_refused(experiments, students, tmp_path):
    config, weights, _ = students["resnet"]
    assert "gone.pt does not exist" in refused(config, tmp_path / "gone.pt")
    (tmp_path / "short.safetensors").write_bytes(weights.read_bytes()[:1000])
    assert "short.safetensors cannot be read as" in refused(config, tmp_path / "short.safetensors")
    model = build_model(num_classes=3, **NETWORKS["resnet"])
    save_student(tmp_path / "three.safetensors", model.state_dict(), {})
    assert "trained on 3 classes; the network has 11" in refused(config, tmp_path / "three.safetensors")
    alone = experiments["alone"]
    assert "teacher is None: there is no teacher to export" in refused(alone, "--teacher", "--out", tmp_path / "t.onnx")
    assert "config gone.py does not exist" in refused("gone.py", weights)
    message = refused(*students["mit"][:2], "--size", 8, 8, "--out", tmp_path / "tiny.onnx")
    assert message == "error: the image is (8, 8); a MiT needs at least 29 pixels a side"
    assert not list(tmp_path.glob("*.onnx"))


def test_contradicting_arguments_are_refused(capsys):
    for arguments, complaint in (
        ("c.py", "either a CHECKPOINT or --teacher"),
        ("c.py x.pt --teacher", "either a CHECKPOINT or --teacher"),
        ("c.py --teacher", "--teacher needs --out FILE"),
        ("c.py x.pt --out x.pt", "--out x.pt: expected a name that ends in .onnx"),
        ("c.py x.pt --size 0 8", "--size 0 8: expected 1 or more pixels"),
        ("c.py x.pt --size 8 8 --dynamic", "not allowed with argument --size"),
        ("c.py x.pt --half --int8 static", "not allowed with argument --half"),
        ("c.py x.pt --outputs labels", "invalid choice: 'labels'"),
        ("c.py x.pt --to torch --out x.onnx", "--out x.onnx: expected a name that ends in .pt2"),
        ("c.py x.pt --to torch --int8 static", "--int8 static: --to torch has none"),
        ("c.py x.pt --to openvino --int8 dynamic", "openvino has static"),
    ):
        assert refused(*arguments.split()) == "2"
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_says_how_to_get_it(package, students, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # import raises
    message = refused(*students["resnet"][:2], "--out", tmp_path / "net.onnx")
    assert message.startswith(f"error: {package} cannot be imported")
    assert message.endswith('pip install ".[onnx]"')


def test_other_files_are_refused_by_the_reader(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ONNX file .*gone\.onnx does not exist"):
        OnnxModel(tmp_path / "gone.onnx")
    content = exported.read_bytes()
    for name, damaged in {"empty": b"", "text": b"not a network", "half": content[: len(content) // 2]}.items():
        (tmp_path / f"{name}.onnx").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}\.onnx cannot be read as an ONNX file \(damaged, or not one\)"):
            OnnxModel(tmp_path / f"{name}.onnx")

    foreign = onnx.load(exported)
    for metadata in ({}, {"author": "someone else"}, {"class_names": json.dumps(["road"])}):
        onnx.helper.set_model_props(foreign, metadata)
        onnx.save(foreign, tmp_path / "foreign.onnx")
        with pytest.raises(
            ValueError,
            match=r"foreign\.onnx has .*; expected classes, logits or both, and class_names, palette, outputs",
        ):
            OnnxModel(tmp_path / "foreign.onnx")


def test_other_images_are_refused_by_the_reader(exported):
    model = OnnxModel(exported)
    with pytest.raises(
        ValueError, match=r"for images of 1 x 3 x 48 x 64; these are 1 x 3 x 50 x 64: .*--size 50 64, or"
    ):
        model(np.zeros((1, 3, 50, 64), np.uint8))
    with pytest.raises(ValueError, match=r"these are 2 x 3 x 48 x 64: .* with --dynamic for any batch and size"):
        model(np.zeros((2, 3, 48, 64), np.uint8))
    for wrong in (np.zeros((1, 3, 48, 64), np.float32), np.zeros((1, 48, 64, 3), np.uint8), np.zeros((3, 48, 64))):
        with pytest.raises(ValueError, match="expected B x 3 x H x W uint8, RGB"):
            model(wrong)


def test_a_size_at_which_the_file_fails_is_named(exported, tmp_path):
    """A network that is dynamic in name alone: its graph flattens the image to the length of 48 x 64."""
    helper, uint8, int64 = onnx.helper, onnx.TensorProto.UINT8, onnx.TensorProto.INT64
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["images", "length"], ["classes"])],
        "broken",
        [helper.make_tensor_value_info("images", uint8, ["B", 3, "H", "W"])],
        [helper.make_tensor_value_info("classes", uint8, None)],
        [helper.make_tensor("length", int64, [3], [3, 48, 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {name: json.dumps(value) for name, value in OnnxModel(exported).metadata.items()})
    onnx.save(model, tmp_path / "broken.onnx")
    broken = OnnxModel(tmp_path / "broken.onnx")
    assert broken(np.zeros((1, 3, 48, 64), np.uint8)).shape == (3, 48, 64)
    with pytest.raises(ValueError, match=r"broken\.onnx fails on images of 1 x 3 x 50 x 64: "):
        broken(np.zeros((1, 3, 50, 64), np.uint8))
