"""Students that another library or a function of the user builds: config, groups, weights, training and reload."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

import eval as evaluation
import train_kd
from engine.build import build_student
from engine.data import build_split
from engine.run import Run
from engine.teacher import build_teacher
from models import load_student
from models.adapters.wrapped import find_logits
from models.deploy import Deployable
from scripts import model_info, predict
from scripts.benchmarks import adapters
from tests.engine.test_teacher import ALONE, load
from tests.runs import assert_same, losses, weights

PLAIN = "python:tests.models.adapters.modules:plain"
SMALL = "{'encoder_name': 'resnet18', 'decoder_channels': (32, 16, 16, 8, 8)}"
STATISTICS = "'normalization': {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5), 'scale': 1.0}"


def of(source, arguments="None", more=""):
    return f"student={{'_delete_': True, 'source': '{source}', 'arguments': {arguments}{more}}}"


TAPS = {"stage1": "stem", "stage2": "stem", "stage3": "deep", "stage4": "deep", "head": "stem"}
UNET = of("smp:Unet", SMALL)
OURS = of(PLAIN, "{'form': 'nested'}", f", 'output': 'heads.0.masks', 'taps': {TAPS}, {STATISTICS}")


def build(path, *options, pretrained=True):
    config = load(path, *options)
    return build_student(config, "x.py", build_split(config, "x.py", "val").class_names, pretrained)


@pytest.fixture(autouse=True)
def _needs_smp(request):
    if "unet" in request.node.name:
        pytest.importorskip("segmentation_models_pytorch", reason='needs pip install ".[smp]"')


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", 'head': 'fpn'", "student: head is set and source is 'python:.*: set head=None, or source=None"),
        (", 'aux': True", "student: aux is set and source is 'python:"),
        (", 'width': 8", "student: width is set and source is 'python:"),
        (", 'pretrained': 'a', 'init_from': 'b'", "which holds a backbone too"),
    ],
)
def test_keys_of_our_networks_do_not_go_with_a_source(experiments, more, message):
    with pytest.raises(ValueError, match=message):
        load(experiments["alone"], of(PLAIN, more=more))


def test_a_student_has_a_backbone_and_a_head_or_a_source_that_can_be_trained(experiments):
    for option, message in {
        "student={'_delete_': True, 'backbone': 'mit_b0'}": "head is None: give both, or a source",
        "student.family=cnn": "family is set and source is None: set family=None, or give a source",
        of("transformers:some/folder"): "the sources of students are python, smp: with python: name a function",
        f"student={{'backbone': 'mit_b0', 'head': 'segformer', {STATISTICS}}}": "normalization is a dict, which only a",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(experiments["alone"], option)


def test_a_function_that_builds_other_classes_or_none_is_named(experiments):
    with pytest.raises(ValueError, match=f"student.source={PLAIN}: .* has 5 classes, and the data has 11: set the arg"):
        build(experiments["alone"], of(PLAIN, "{'classes': 5}"))
    with pytest.raises(ValueError, match="has None classes, and the data has 11"):
        build(experiments["alone"], of(PLAIN, more=", 'output': False, 'taps': {'stage3': 'deep'}"))
    with pytest.raises(ValueError, match="No module named 'no'; expected .*, on PYTHONPATH or in custom_imports"):
        build(experiments["alone"], of("python:no.such:thing"))


def test_the_encoder_of_a_unet_has_the_backbones_learning_rate_and_a_module_of_the_user_too(experiments, tmp_path):
    def rates(option):
        config = load(experiments["alone"], option)
        run = Run(config, "x.py", tmp_path, ALONE, dry=True)
        groups = run.trainer.optimizer.param_groups
        return run.trainer.student, {id(p): group["base_lr"] for group in groups for p in group["params"]}

    student, rate = rates(UNET)
    encoder = {id(p) for p in student.module.encoder.parameters()}
    assert {rate[id(p)] for p in student.parameters() if id(p) in encoder} == {1e-3}
    assert {rate[id(p)] for p in student.parameters() if id(p) not in encoder} == {2e-3}
    student, rate = rates(OURS)
    assert set(rate.values()) == {1e-3}


@pytest.mark.parametrize(("option", "source"), [(UNET, None), (OURS, PLAIN)], ids=["unet", "module"])
def test_it_trains_resumes_evaluates_and_reloads_exactly(experiments, tmp_path, option, source):
    options = ["--cfg-options", option, "schedule.max_iters=4", "train.ema=0.9"]
    config, work_dir = experiments["hmkd"], tmp_path / "run"
    train_kd.main([config, "--work-dir", str(work_dir), *options])
    whole, logged = weights(work_dir / "last.pt"), losses(work_dir)
    for name in ("last.pt", "step_4.pt", "step_3.pt", "student.safetensors"):
        (work_dir / name).unlink()
    train_kd.main([config, "--work-dir", str(work_dir), "--resume", "auto", *options])
    assert_same(weights(work_dir / "last.pt"), whole)
    assert losses(work_dir) == logged

    file = work_dir / "student.safetensors"
    model, metadata = load_student(file, source)
    assert_same(model.state_dict(), load_file(file))
    evaluation.main([config, str(file), "--json", str(tmp_path / "result.json"), *options])
    assert json.loads((tmp_path / "result.json").read_text())["miou"] == metadata["miou"]
    built, _ = build(config, option)
    assert (model.normalization, model.spec) == (built.normalization, built.spec)
    predictor = predict.Predictor(file, torch.device("cpu"), source=source)
    image = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
    classes = Deployable(model)(image.permute(2, 0, 1)[None])[0][0]
    assert (torch.from_numpy(predictor(image.numpy())) == classes).float().mean() > 0.99


def test_a_file_alone_runs_no_function(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("os.system", lambda *given: called.append(given))
    path = tmp_path / "student.safetensors"
    network = {"source": "python:os:system", "arguments": {"command": "true"}}
    normalization = {"mean": [0.0] * 3, "std": [1.0] * 3, "bgr": False}
    metadata = {
        "network": network, "normalization": normalization, "class_names": ["a", "b"], "palette": [[0, 0, 0]] * 2
    }  # fmt: skip
    save_file({"module.weight": torch.ones(1)}, path, {name: json.dumps(value) for name, value in metadata.items()})
    for named in (None, "python:os:remove"):
        with pytest.raises(ValueError, match=r"built by python:os:system, and a file alone runs no code"):
            load_student(path, named)
    assert called == []
    for wrong in ({"source": 3}, {"source": PLAIN, "backbone": "mit_b0"}, {"source": PLAIN, "pad_to": 0}):
        texts = {name: json.dumps(value) for name, value in (metadata | {"network": wrong}).items()}
        save_file({"module.weight": torch.ones(1)}, path, texts)
        with pytest.raises(ValueError, match="its metadata is damaged: network"):
            load_student(path)
    texts = {name: json.dumps(value) for name, value in (metadata | {"network": {"source": "timm:resnet18"}}).items()}
    save_file({"module.weight": torch.ones(1)}, path, texts)
    with pytest.raises(ValueError, match="timm:resnet18 is no network to train; expected one of python, smp"):
        load_student(path)


def shifted(module):
    return {
        key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in module.state_dict().items()
    }  # fmt: skip


def test_pretrained_is_the_encoder_of_a_unet_from_its_own_librarys_file_or_smps(experiments, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch", reason='needs pip install ".[smp]"')
    file = str(tmp_path / "weights.pth")
    more = f", 'pretrained': {file!r}"
    for encoder, whole in {
        "resnet18": torchvision.models.resnet18(),
        "tu-mobilenetv4_conv_small": timm.create_model("mobilenetv4_conv_small"),
        "mit_b0": smp.FPN("mit_b0", encoder_weights=None, classes=3),
    }.items():
        state = shifted(whole)
        torch.save(state, file)
        option = of("smp:Unet", f"{{'encoder_name': '{encoder}'}}", more)
        student, report = build(experiments["alone"], option)
        found = {
            key.removeprefix("model.").replace("_", "."): tensor
            for key, tensor in student.backbone.state_dict().items()
        }
        given = {key.removeprefix("encoder.").replace("_", "."): tensor for key, tensor in state.items()}
        assert found.keys() <= given.keys()
        assert all(torch.equal(tensor, given[key]) for key, tensor in found.items())
        assert report.part == "backbone"
        assert report.loaded + len(report.skipped) == len(state)
        torch.manual_seed(0)
        before = build(experiments["alone"], option, pretrained=False)[0].module.decoder.state_dict()
        torch.manual_seed(0)
        assert_same(build(experiments["alone"], option)[0].module.decoder.state_dict(), before)
    torch.save(torchvision.models.resnet34().state_dict(), file)
    with pytest.raises(
        ValueError, match=r"student.pretrained: .*does not fit.*\n  96 unknown to the network: layer1.2"
    ):
        build(experiments["alone"], of("smp:Unet", SMALL, more))
    with pytest.raises(ValueError, match="student.pretrained: .*the encoder of a Plain is not known here: .*init_from"):
        build(experiments["alone"], of(PLAIN, more=more))


def test_the_backbone_of_a_unet_can_be_frozen_by_one_name(experiments):
    student, _ = build(experiments["alone"], of("smp:Unet", SMALL, ", 'freeze': 'backbone'"))
    encoder = set(student.module.encoder.parameters())
    assert [parameter.requires_grad for parameter in student.parameters()] == [
        parameter not in encoder for parameter in student.parameters()
    ]
    assert not any(module.training for module in student.module.encoder.modules())
    assert student.module.decoder.training
    with pytest.raises(ValueError, match="student.freeze: 'backbone' are all of the network"):
        build(experiments["alone"], of(PLAIN, more=", 'freeze': 'backbone'"))


def test_init_from_is_the_whole_network_with_the_classes_of_the_data(experiments, tmp_path):
    file = tmp_path / "weights.pth"
    option = of(PLAIN, more=f", 'init_from': {str(file)!r}")
    torch.manual_seed(1)
    source, _ = build(experiments["alone"], of(PLAIN))
    torch.save(shifted(source.module), file)
    student, report = build(experiments["alone"], option)
    assert_same(student.module.state_dict(), shifted(source.module))
    assert report.loaded == len(source.state_dict())
    torch.save(
        {key: tensor[:5] if "classifier" in key else tensor for key, tensor in source.state_dict().items()}, file
    )
    with pytest.raises(ValueError, match=r"student.init_from: .*\n  2 of another shape: module.classifier.weight .5x"):
        build(experiments["alone"], option)


def test_a_student_of_a_library_becomes_a_teacher_by_its_source_and_file(experiments, tmp_path):
    options = ["--cfg-options", OURS, "schedule.max_iters=1"]
    train_kd.main([experiments["alone"], "--work-dir", str(tmp_path / "run"), *options])
    file = str(tmp_path / "run" / "student.safetensors")
    names = build_split(load(experiments["hmkd"]), "x.py", "val").class_names
    teacher = f"teacher={{'_delete_': True, 'weights': {file!r}"
    with pytest.raises(ValueError, match=f"holds a network of another library: add source='{PLAIN}', arguments="):
        build_teacher(load(experiments["hmkd"], teacher + "}"), "x.py", names)
    given = OURS.removeprefix("student={'_delete_': True").removesuffix("}")
    without = given.replace(f", {STATISTICS}", "")
    for more in (given, without):  # the metadata has its normalisation
        built = build_teacher(load(experiments["hmkd"], teacher + more + "}"), "x.py", names)
        student, _ = load_student(file, PLAIN)
        images = torch.randint(256, (1, 3, 48, 64), dtype=torch.uint8)
        assert torch.equal(built(images).logits, student(images).logits)
        assert built.network.normalization == student.normalization


def test_model_info_counts_a_unets_encoder_as_its_backbone(experiments, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch", reason='needs pip install ".[smp]"')
    model, _ = build(experiments["alone"], UNET)
    facts = model_info.describe(model.eval(), (64, 64))
    encoder = sum(p.numel() for p in smp.encoders.get_encoder("resnet18", weights=None).parameters())
    assert facts["parameters"]["backbone"] == encoder
    assert facts["parameters"]["deployed"] == encoder + facts["parameters"]["head"]
    adds = facts["multiply_adds"]
    assert 0 < adds["head"] == adds["total"] - adds["backbone"]
    stem = 3 * 64 * 49 * 32 * 32  # the first of its layers
    assert adds["backbone"] > stem


def test_every_row_of_the_adapters_benchmark_compares_the_same_output(monkeypatch):
    for package in ("transformers", "segmentation_models_pytorch"):
        pytest.importorskip(package)
    device, images = torch.device("cpu"), torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    for _, model in adapters.networks():
        with torch.inference_mode():
            alone = model.module(model.normalize(images))
            torch.testing.assert_close(model(images).logits, find_logits(alone, None))
    rows = adapters.run(device, 1, (64, 64), 1)
    assert len(rows) == 3
    assert all(row["ours"] > 0 < row["published"] for row in rows)
