import json
import re
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_weights

import models.mit
from configs.schema import Experiment
from engine.report import multiply_adds
from models import build_model
from scripts import model_info
from scripts.benchmarks import timing
from scripts.benchmarks.published import as_published
from scripts.model_info import class_names, describe, gain, main, measure_latency, milliseconds
from utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ["data.root=nowhere", "teacher.weights=nowhere.safetensors"]


@pytest.fixture
def without_onnx(monkeypatch):
    """A machine without the optional packages, which is faster too."""

    def refuse(name, extra):
        raise ValueError(f'{name} cannot be imported (it is not there): pip install ".[{extra}]"')

    monkeypatch.setattr(model_info, "import_extra", refuse)


def published_gmacs(name):
    return get_model_weights(name).DEFAULT.meta["_ops"]


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_multiply_adds_are_those_torchvision_publishes_for_deeplabv3(backbone):
    found = multiply_adds(build_model(backbone, "deeplabv3", 21), (520, 520))
    # Its networks run their auxiliary head always: 3x3 from 1024 to 256 and 1x1 to 21 channels, on a grid of 65 x 65.
    auxiliary = 65 * 65 * (9 * 1024 * 256 + 256 * 21)
    assert (found["total"] + auxiliary) / 1e9 == pytest.approx(published_gmacs(f"deeplabv3_{backbone}"), abs=6e-4)
    assert found["backbone"] + found["head"] == found["total"]


def test_multiply_adds_are_those_torchvision_publishes_for_resnet18():
    found = multiply_adds(build_model("resnet18", "segformer", 2, width=8), (224, 224))
    assert (found["backbone"] + 512 * 1000) / 1e9 == pytest.approx(published_gmacs("resnet18"), abs=6e-4)


def test_multiply_adds_are_those_of_the_segformer_paper():
    """Table 1 of Xie et al., NeurIPS 2021: 8.4 G for B0 on 512 x 512 with 150 classes, of which our head saves half."""
    network = build_model("mit_b0", "segformer", 150, width=256)
    ours = multiply_adds(network, (512, 512))
    theirs = multiply_adds(as_published(network), (512, 512))
    assert round(theirs["total"] / 1e9, 1) == 8.4
    widths, cells = (32, 64, 160, 256), (128**2, 64**2, 32**2, 16**2)
    by_hand = sum(256 * (C * N + 256 * C) for C, N in zip(widths, cells, strict=True)) + 256 * 150 * 128**2
    assert ours["head"] == by_hand
    assert ours["total"] < 0.6 * theirs["total"]


def test_both_products_of_attention_are_counted(monkeypatch):
    network = build_model("mit_b0", "segformer", 2, width=8)
    whole = multiply_adds(network, (64, 64))["total"]
    monkeypatch.setattr(models.mit.F, "scaled_dot_product_attention", lambda q, k, v: q)
    # Two blocks a stage, two products a block: tokens x 4 keys x channels.
    attention = 2 * 2 * (256 * 4 * 32 + 64 * 4 * 64 + 16 * 4 * 160 + 4 * 4 * 256)
    assert whole - multiply_adds(network, (64, 64))["total"] == attention


def test_a_network_described_is_the_network_that_runs():
    network = build_model("resnet18", "deeplabv3", 5, output_stride=16, width=8, aux=True).eval()
    facts, device = describe(network, (45, 61)), next(network.parameters()).device
    with torch.inference_mode():
        taps = network(torch.zeros(1, 3, 45, 61, dtype=torch.uint8)).taps
    assert {name: [tap["channels"], *tap["grid"]] for name, tap in facts["taps"].items()} == {
        name: list(maps.shape[1:]) for name, maps in taps.items()
    }
    # torchvision's ResNet-18 without its classifier; the auxiliary head: 3x3 from 256 to 64, BatchNorm, 1x1 to 5.
    assert facts["parameters"]["backbone"] == 11_689_512 - 513 * 1000
    assert facts["parameters"]["auxiliary"] == 9 * 256 * 64 + 2 * 64 + 65 * 5
    assert facts["parameters"]["deployed"] == facts["parameters"]["backbone"] + facts["parameters"]["head"]
    assert device == torch.device("cpu"), "counting took the network itself to another device"


def test_classes_are_known_without_data(tmp_path, experiments):
    for name, count in (("camvid_b4_r18", 11), ("cityscapes_r101_b0", 19)):
        source = str(ROOT / "configs" / "hmkd" / f"{name}.py")
        config = load_config(source, Experiment, ["data.root=nowhere"])
        assert len(class_names(config, source)) == count
    (tmp_path / "mine.py").write_text(
        f"_base_ = [{experiments['alone']!r}]\n"
        "data = dict(type='list', root='nowhere', class_names=['no', 'yes'], id_table={0: 0, 9: 1})\n"
    )
    source = str(tmp_path / "mine.py")
    assert class_names(load_config(source, Experiment), source) == ("no", "yes")


def test_the_networks_take_turns():
    order = []
    calls = {"teacher": lambda: order.append("t"), "student": lambda: order.append("s")}
    times = milliseconds(calls, 3, torch.device("cpu"))
    assert "".join(order) == "ts" * (model_info.WARM_UP + 3)
    assert [len(measured) for measured in times.values()] == [3, 3]


def test_times_are_milliseconds_of_the_run_alone(monkeypatch):
    clock = iter([1.0, 1.25, 7.0, 7.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(model_info, "WARM_UP", 0)
    assert milliseconds({"student": lambda: None}, 2, torch.device("cpu")) == {"student": [250.0, 500.0]}


def test_a_gain_is_said_in_words():
    assert gain(30.0, 4.0, "fewer", "more") == "7.5x fewer"
    assert gain(4.0, 10.0, "fewer", "more") == "2.5x more"


def test_a_pair_without_weights_or_data(experiments, without_onnx, tmp_path, capsys):
    file = tmp_path / "info.json"
    main([experiments["hmkd"], "--device", "cpu", "--runs", "2", "--json", str(file), "--cfg-options", *ABSENT])
    said, result = capsys.readouterr().out, json.loads(file.read_text())
    assert "image 32x48 (data.crop_size: nowhere/val.txt does not exist); medians of 2 on " in said
    parts = {line.split("  ")[0]: line.split()[-2:] for line in said.splitlines()[3:12]}
    assert list(parts)[-4:] == [f"stage{number}: channels, stride, grid" for number in (1, 2, 3, 4)]
    for runtime, package, extra in (("ONNX Runtime", "onnxruntime", "onnx"), ("OpenVINO", "openvino", "openvino")):
        expected = f'{package} cannot be imported (it is not there): pip install ".[{extra}]"'
        assert result["latency_ms"].pop(runtime) == expected
    assert list(result["latency_ms"]) == ["eager fp32", "channels_last fp32", "channels_last bf16"]
    for times in result["latency_ms"].values():
        assert [len(measured) for measured in times.values()] == [2, 2]
        assert min(map(min, times.values())) > 0
    operations = {name: network["multiply_adds"]["total"] for name, network in result["networks"].items()}
    assert f"{gain(operations['teacher'], operations['student'], 'fewer', 'more')} GFLOPs" in said.splitlines()[-1]
    expected = build_model("test_resnet", "deeplabv3", 11, output_stride=16, width=8)
    teacher = result["networks"]["teacher"]["parameters"]
    assert teacher["deployed"] == sum(parameter.numel() for parameter in expected.parameters())
    assert result["image_size"] == [32, 48]
    assert result["configs"][experiments["hmkd"]]["teacher"]["backbone"] == "test_resnet"
    assert torch.__version__.startswith(result["environment"]["torch"])


@pytest.mark.slow
def test_onnx_runtime_and_openvino_are_timed_too():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    networks = {"student": build_model("test_resnet", "deeplabv3", 2, output_stride=16, width=4)}
    onnx, openvino = list(measure_latency(networks, (32, 48), torch.device("cpu"), runs=2))[-2:]
    assert re.fullmatch(r"ONNX Runtime [\d.]+ CPU", onnx[0])
    assert re.fullmatch(r"OpenVINO [\d.]+ CPU", openvino[0])
    for _, times in (onnx, openvino):
        assert len(times["student"]) == 2


def test_a_student_alone_at_the_size_of_its_data(experiments, without_onnx, capsys):
    main([experiments["alone"], "--device", "cpu", "--runs", "1"])
    said = capsys.readouterr().out
    assert "image 48x64 (first image of" in said
    assert "teacher" not in said
    assert "faster" not in said


def test_what_is_timed_is_the_whole(experiments, without_onnx, monkeypatch):
    """A uint8 image in, a class map of its size out, in each form."""
    seen, forward = [], model_info.Deployable.forward

    def watch(self, images):
        outputs = forward(self, images)
        seen.append((images.dtype, [(output.dtype, tuple(output.shape)) for output in outputs]))
        return outputs

    monkeypatch.setattr(model_info.Deployable, "forward", watch)
    main([experiments["alone"], "--device", "cpu", "--runs", "1", "--size", "40", "56"])
    assert seen == 3 * (model_info.WARM_UP + 1) * [(torch.uint8, [(torch.uint8, (1, 40, 56))])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8", "8"], "the image is .*MiT needs at least 29 pixels a side"),
        (["--cfg-options", "student.backbone=mit_b9"], r"alone\.py: student: unknown backbone 'mit_b9'"),
    ],
)
def test_what_cannot_be_is_one_clear_message(experiments, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main([experiments["alone"], *arguments])


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--size", "0", "5"]])
def test_impossible_arguments_are_refused(experiments, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([experiments["alone"], *arguments])
    assert stop.value.code == 2
    assert " ".join(arguments) in capsys.readouterr().err


def test_data_that_is_there_but_damaged_is_an_error(experiments, tmp_path):
    (tmp_path / "val.txt").write_text("gone.png\n")
    with pytest.raises(SystemExit, match="1 of the files in .* are missing"):
        main([experiments["alone"], "--cfg-options", f"data.root={tmp_path}"])


@pytest.fixture
def two_configs(experiments, tmp_path):
    """The student alone in the folder of a run with mIoUs, and a wider one with an evaluation of it and its teacher."""
    run, wide = tmp_path / "run" / "config.py", tmp_path / "wide.py"
    run.parent.mkdir()
    run.write_text(f"_base_ = [{experiments['alone']!r}]")
    entries = [{"step": 3, "miou": 0.9}, {"step": 3, "new_protocol": True}, {"step": 3, "miou": 0.4}]
    entries.append({"step": 6, "miou": 0.3, "averaged_miou": 0.45})
    (run.parent / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    wide.write_text(f"_base_ = [{experiments['hmkd']!r}]\nstudent = dict(width=32)\nteacher = dict(weights='t.pt')")
    config = load_config(str(wide), Experiment).model_dump(mode="json")
    for name, checkpoint, miou in (("teacher", "t.pt", 0.8), ("student", "student.safetensors", 0.25)):
        result = {"miou": miou, "config": config, "checkpoint": checkpoint}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return run, wide


def test_several_configs_are_one_table_with_what_was_measured(two_configs, without_onnx, tmp_path, capsys):
    results = [str(tmp_path / f"{name}.json") for name in ("teacher", "student")]
    arguments = [*map(str, two_configs), "--results", *results, "--device", "cpu", "--runs", "1"]
    main([*arguments, "--json", str(tmp_path / "info.json")])
    lines, result = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "info.json").read_text())
    names = ["eager fp32", "channels_last fp32", "channels_last bf16"]
    assert lines[0].split("  ")[0] == "network"
    assert [name for name in names if f"ms, {name}" in lines[0]] == names
    for line, source, width, miou in zip(lines[2:], two_configs, (16, 32), ("45.00", "25.00"), strict=False):
        network = build_model("mit_b0", "segformer", 11, width=width)
        cells = line.split()
        assert cells[:3] == ["segformer", "mit_b0", f"{sum(each.numel() for each in network.parameters()) / 1e6:.2f}"]
        assert cells[3] == f"{multiply_adds(network, (48, 64))['total'] / 1e9:.2f}"
        assert cells[-2:] == [miou, str(source)]
        assert len(cells) == 9
    assert lines[4].startswith("image 48x64 (first image of ")
    assert list(result["miou"].values()) == [0.45, 0.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a\.json cannot be read as JSON"),
        ("[]", r"a\.json holds a list; expected a JSON object"),
        ("{}", r"a\.json has no miou, config and checkpoint; expected a file of eval\.py --json"),
        ('{"miou": 0.5, "checkpoint": "a", "config": {}}', r"a\.json was measured with none of these configs"),
    ],
)
def test_a_result_of_something_else_is_refused(two_configs, tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main([*map(str, two_configs), "--results", str(tmp_path / "a.json")])


def test_one_table_has_one_image_size(two_configs):
    options = ["--cfg-options", "data.root=nowhere"]
    two_configs[1].write_text(two_configs[1].read_text() + "\ndata = dict(crop_size=(40, 40))")
    with pytest.raises(SystemExit, match=r"sizes \[\(32, 48\), \(40, 40\)\] \(H, W\): give one by --size H W"):
        main([*map(str, two_configs), *options])
