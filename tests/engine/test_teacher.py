"""The frozen teacher: its input scale, its class map, its kept outputs, and teachers that have features only."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine.run
import train_kd
from configs.schema import Experiment
from engine.data import build_split, build_train_stream
from engine.evaluation import evaluate
from engine.report import multiply_adds, network_table
from engine.teacher import Teacher, build_teacher, build_teacher_cache
from models import MappedModel, ModelSpec, SegOutput, Tap, build_model
from models.inference import predict
from utils.config import load_config
from utils.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
SIZES = [(48, 64), (33, 47)]
SCALES = [0.5, 0.75, 0.3, 1.5]


def network(num_classes=11) -> nn.Module:
    """A random network that predicts many classes: the mean logit of each is 0."""
    torch.manual_seed(0)
    model = build_model("test_resnet", "deeplabv3", num_classes, output_stride=16, width=8).eval()
    with torch.no_grad():
        model.head.classifier.bias -= model(images()).logits.mean((0, 2, 3))
    return model


def images(size=(48, 64), batch=2) -> torch.Tensor:
    return torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_equal(one: SegOutput, two: SegOutput) -> None:
    assert torch.equal(one.logits, two.logits)
    assert one.taps.keys() == two.taps.keys()
    assert all(torch.equal(one.taps[tap], two.taps[tap]) for tap in one.taps)


def load(path, *options) -> Experiment:
    return load_config(path, Experiment, options)


def test_it_is_frozen_and_stays_in_evaluation_mode():
    teacher = Teacher(network().train().requires_grad_(True))
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(images()).logits.requires_grad


def test_scale_1_is_the_network_itself():
    teacher = Teacher(network())
    assert_equal(teacher(images()), network()(images()))
    assert teacher.spec == network().spec
    assert all(isinstance(tap.stride, int) for tap in teacher.spec.taps.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", SCALES)
def test_the_network_sees_the_images_resized(size, scale):
    height, width = (math.ceil(side * scale) for side in size)
    x = F.interpolate(images(size).float(), (height, width), mode="bilinear", antialias=scale < 1)
    with torch.no_grad():
        assert_equal(Teacher(network(), scale)(images(size)), network()(x))


@pytest.mark.parametrize("size", [*SIZES, (30, 31), (57, 64)])
@pytest.mark.parametrize("scale", [*SCALES, 0.7, 0.1, 1 / 3])
def test_maps_have_the_grid_that_their_strides_declare(size, scale):
    teacher = Teacher(network(), scale)
    found = teacher(images(size, 1))
    for name, tap in teacher.spec.taps.items():
        assert found.taps[name].shape == (1, tap.channels, *(-(-side // tap.stride) for side in size))


def test_strides_are_divided_by_the_scale():
    strides = [tap.stride for tap in network().spec.taps.values()]
    assert strides == [4, 8, 16, 16, 16]
    assert [tap.stride for tap in Teacher(network(), 0.5).spec.taps.values()] == [8, 16, 32, 32, 32]
    assert [str(tap.stride) for tap in Teacher(network(), 0.75).spec.taps.values()] == ["16/3", "32/3", *["64/3"] * 3]
    assert "8@16/3" not in network_table({"teacher": Teacher(network())}, (48, 64))
    assert "@16/3" in network_table({"teacher": Teacher(network(), 0.75)}, (48, 64))


def test_a_class_map_and_a_scale_go_together():
    class_map = (0, 1, None, 1, 2)
    teacher = Teacher(MappedModel(network(5), class_map, 3), 0.5)
    assert teacher.spec.num_classes == 3
    x = F.interpolate(images().float(), (24, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = network(5)(x).logits
    expected = torch.stack([logits[:, 0], logits[:, [1, 3]].logsumexp(1), logits[:, 4]], dim=1)
    torch.testing.assert_close(teacher(images()).logits, expected)


def test_evaluation_and_prediction_apply_the_scale(experiments):
    """As a protocol of one scale does, which resizes images of even sides to the same size."""
    data = build_split(load(experiments["hmkd"]), "x.py", "val")
    settings = {"device": "cpu", "progress": False}
    found, expected = (
        evaluate(Teacher(network(), 0.5), data, **settings),
        evaluate(network(), data, scales=[0.5], **settings),
    )
    assert found == expected
    assert found != evaluate(network(), data, **settings)
    assert torch.equal(predict(Teacher(network(), 0.5), images()), predict(network(), images(), scales=[0.5]))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_prepared_for_half_precision_it_computes_what_autocast_does(dtype):
    plain, prepared = Teacher(network(), 0.5), Teacher(network(), 0.5)
    prepared.prepare(ALONE, autocast_dtype=dtype)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        assert_equal(prepared(images()), plain(images()))
    weights = next(module.weight for module in prepared.modules() if isinstance(module, nn.Conv2d))
    assert weights.dtype == (dtype or torch.float32)


def test_kept_outputs_are_those_at_the_scale_and_belong_to_it(experiments, tmp_path):
    options = ["data.distinct_epochs=1", f"teacher.cache={tmp_path}", "teacher.cache_taps=('stage1','stage3')"]
    config = load(experiments["hmkd"], *options, "teacher.scale=0.75")
    stream = build_train_stream(config, "x.py")

    def build(config):
        teacher = build_teacher(config, "x.py", build_split(config, "x.py", "val").class_names)
        teacher.cache = build_teacher_cache(config, "x.py", stream, teacher, ALONE)
        return teacher

    teacher, x = build(config), torch.stack([stream[position]["image"] for position in (3, 0)])
    expected = teacher(x)  # without positions nothing is kept
    assert teacher.cache.recall([3, 0]) is None
    kept = teacher(x, torch.tensor([3, 0]))
    assert torch.equal(kept.logits, expected.logits.half().float())
    assert torch.equal(kept.taps["stage3"], expected.taps["stage3"].half().float())
    assert_equal(teacher(torch.zeros_like(x), [3, 0]), kept)  # read, not computed again
    assert json.loads((tmp_path / "index.json").read_text())["teacher"]["scale"] == 0.75
    with pytest.raises(ValueError, match=r"teacher.scale: 0.75 -> 0.5"):
        build(load(experiments["hmkd"], *options, "teacher.scale=0.5"))


def test_a_scale_that_is_not_positive_is_refused(experiments):
    for scale, message in (("0.0", "greater than 0"), ("-1.0", "greater than 0"), ("9.0", "less than or equal to 8")):
        with pytest.raises(ValueError, match=rf"hmkd.py: teacher.scale: .*{message}"):
            load(experiments["hmkd"], f"teacher.scale={scale}")


def losses(work_dir):
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_with_a_scaled_teacher_trains_and_evaluates_it(experiments, tmp_path):
    options = ["schedule.max_iters=2", "train.verify_teacher=True", "train.allow_weak_teacher=True", "eval.interval=2"]
    found = {}
    for scale in (1.0, 0.5, 1.5):
        folder = tmp_path / str(scale)
        train_kd.main(
            [experiments["hmkd"], "--work-dir", str(folder), "--cfg-options", *options, f"teacher.scale={scale}"]
        )
        found[scale] = losses(folder)
        assert all(math.isfinite(loss) for loss in found[scale])
    assert len(found[0.5]) == 2
    assert len({*map(tuple, found.values())}) == 3
    # The teacher's mIoU in the log is that of its predictions at its scale: of the images, not of enlarged views.
    for scale in (0.5, 1.5):
        config = load(experiments["hmkd"], f"teacher.scale={scale}")
        val = build_split(config, "x.py", "val")
        network = build_teacher(config, "x.py", val.class_names).network
        logged = json.loads((tmp_path / str(scale) / "metrics.jsonl").read_text().splitlines()[0])["teacher_miou"]
        expected = evaluate(network, val, device="cpu", scales=[scale], progress=False).miou
        assert expected == pytest.approx(logged)


def test_a_teacher_of_a_larger_scale_sees_the_images_own_details(experiments):
    """Its crops come from the images, not from the student's crops, with or without labels."""
    options = ["data.labelled_fraction=0.5", "train.unlabelled_batch=2", "distill.pixels=inside"]
    config = load(experiments["hmkd"], "teacher.scale=1.5", *options)
    stream = build_train_stream(config, "x.py")
    plain = build_train_stream(load(experiments["hmkd"], *options), "x.py")
    teacher = build_teacher(config, "x.py", build_split(config, "x.py", "val").class_names)
    for position in (0, -1):
        sample = stream[position]
        assert torch.equal(sample["image"], plain[position]["image"])
        assert "large_image" not in plain[position]
        image, large = sample["image"][None], sample["large_image"][None]
        assert large.shape == (1, 3, 48, 72)  # 1.5 times 32 x 48
        with torch.no_grad():
            assert_equal(teacher(image, None, large), teacher.network(large))
        assert not torch.equal(teacher(image, None, large).logits, teacher(image).logits)


def test_a_larger_scale_and_mixing_do_not_go_together(experiments):
    with pytest.raises(ValueError, match="teacher.scale is 1.5: the teacher sees larger crops, which data.mixing does"):
        load(experiments["hmkd"], "teacher.scale=1.5", "data.mixing=cutmix", "data.mixing_domain=labelled")


class Features(nn.Module):
    """A network without logits: two strided convolutions, each a tap under a name of its own."""

    spec = ModelSpec({"early": Tap(6, 4), "late": Tap(10, 16)}, None, "cnn")

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.early, self.late = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 10, 4, stride=4)
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    def forward(self, images):
        x = F.pad(images.float() / 255, (0, -images.shape[-1] % 16, 0, -images.shape[-2] % 16))
        early = self.early(x)
        return SegOutput(None, {"early": early, "late": self.late(early)}, None)


FEATURES_ONLY = [
    "distill={'_delete_': True, 'type': 'fitnet', 'pairs': [('late', 'stage3')]}",
    "schedule.max_iters=3",
    "train.verify_teacher=True",
]


def test_a_teacher_with_features_only_trains_a_student(experiments, tmp_path, monkeypatch, capsys):
    """There is no mIoU to verify, which is printed once, and the pictures show the student alone."""
    monkeypatch.setattr(engine.run, "build_teacher", lambda *_, **__: Teacher(Features()))
    shown = []

    def panel(*arguments, original=train_kd.prediction_panel, **options):
        shown.append(list(arguments[2]))
        return original(*arguments, **options)

    monkeypatch.setattr(train_kd, "prediction_panel", panel)
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *FEATURES_ONLY])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 3
    assert all(math.isfinite(line["fitnet"]) and line["fitnet"] > 0 for line in steps)
    assert not any("teacher_miou" in line for line in lines)
    assert capsys.readouterr().out.count("teacher: it has features and no logits") == 1
    assert shown == [["student"]]


def test_features_only_have_no_predictions_and_are_kept_without_logits(experiments, tmp_path):
    with pytest.raises(ValueError, match="the network has features and no logits: it predicts no classes"):
        predict(Teacher(Features()), images())
    options = ["data.distinct_epochs=1", f"teacher.cache={tmp_path}"]
    config = load(experiments["hmkd"], *options)
    real = build_teacher(config, "x.py", build_split(config, "x.py", "val").class_names)
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache_taps": ("late",)})})
    features = Features()
    features.normalization = real.network.normalization
    teacher = Teacher(features, loaded=real.loaded)
    stream = build_train_stream(config, "x.py")
    teacher.cache = build_teacher_cache(config, "x.py", stream, teacher, ALONE)
    x = torch.stack([stream[0]["image"]])
    kept = teacher(x, [0])
    assert kept.logits is None
    assert torch.equal(kept.taps["late"], features(x).taps["late"].half().float())


def test_a_dry_run_prints_the_scaled_teachers_cost_and_strides(experiments, tmp_path, capsys):
    """Half the sides of 64 x 64 pixels, at stride 16: a quarter of the multiply-adds, but for pooled 1 x 1 maps."""
    full, half = (multiply_adds(Teacher(network(), scale), (64, 64))["total"] for scale in (1.0, 0.5))
    assert full / half == pytest.approx(4, rel=1e-2)
    options = ["--dry-run", "--cfg-options", "teacher.scale=0.5"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), *options])
    assert "stage1:32@8 stage2:48@16 stage3:192@32" in capsys.readouterr().out
