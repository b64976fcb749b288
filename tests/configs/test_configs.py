"""Every shipped config is read, validated and built, on no device and without its files."""

from pathlib import Path

import pytest
import torch

import train_kd
from configs.schema import Experiment, MethodSection
from datasets import DATASETS, camvid
from datasets.base import read_classes, read_table
from engine.build import build_distiller, build_student
from engine.checkpoint import save_student
from engine.teacher import build_teacher
from losses import METHODS
from models import build_model
from utils.config import ConfigError, component_section, dump_config, load_config, load_section, validate

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_")
METHOD_FOLDER = ROOT / "configs/_base_/methods"
CLASSES = {name: read_classes(name)[0] for name in ("ade20k", "cityscapes", "coco_stuff", "voc")}
CLASSES["camvid"] = camvid.NAMES.split()


def load(path, *options):
    return load_config(ROOT / path, Experiment, options)


def build(config, source="config.py"):
    """The networks and the distiller of ``config`` as shapes alone."""
    with torch.device("meta"):
        student, _ = build_student(config, source, CLASSES[config.data.type], pretrained=False)
        teacher = build_teacher(config, source, CLASSES[config.data.type], pretrained=False)
        return student, teacher, build_distiller(config, source, student, teacher)


def test_the_missions_configs_are_shipped():
    names = {str(path) for path in SHIPPED}
    assert {load(path).data.type for path in SHIPPED} == set(DATASETS) - {"list"}
    for dataset in ("camvid", "cityscapes"):
        for pair in ("b4_r18", "r101_b0", "r101_r18", "b4_b0"):
            assert f"configs/hmkd/{dataset}_{pair}.py" in names
        for network in ("r18", "r101", "b0", "b4"):
            assert f"configs/baselines/{dataset}_{network}.py" in names


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_config_builds(path):
    config = load(path)
    _, teacher, distiller = build(config)
    assert config.data.type in DATASETS
    assert (teacher is None) == (distiller.method is None)
    assert any("feature" in term for term in distiller.weights) == (teacher is not None)
    assert len((ROOT / path).read_text().splitlines()) < 25


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_resolved_config_reads_back_equal(path, tmp_path):
    config = load(path)
    (tmp_path / "config.py").write_text(dump_config(config))
    assert load_config(tmp_path / "config.py", Experiment) == config


PAIR = "configs/hmkd/camvid_b4_r18.py"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.croop_size=(8,8)", r"camvid_b4_r18.py: data.croop_size: unknown key; did you mean 'crop_size'\?"),
        ("data.type=camvd", r"data.type: .*camvd.*did you mean 'camvid'\?"),
        ("data.crop_size=(0,8)", r"data.crop_size.0: .*greater than 0; found 0"),
        ("data.crop_size=(8,65537)", r"data.crop_size.1: .*less than or equal to 65536; found 65537"),
        ("schedule.max_iters=0x8000000000000000", r"schedule.max_iters: .*less than 9223372036854775808; found 9223"),
        ("train.seed=4294967296", r"train.seed: .*less than 4294967296; found 4294967296"),
        ("student.head=deeplab", r"student.head: unknown head 'deeplab'; did you mean 'deeplabv3'\?"),
        ("student.output_stride=12", r"student.output_stride: 12 is not valid"),
        ("distill.type=hmdk", r"distill.type: .*hmdk.*did you mean 'hmkd'\?"),
        ("distill.featur=1.0", r"distill.featur: unknown key; did you mean 'feature'\?"),
        ("distill.temperature=hot", r"distill.temperature: .*valid number.*found 'hot'"),
        ("distill=None", "teacher is set but distill is None"),
        ("teacher=None", "distill is set but teacher is None"),
        ("train.aux_weight=0.0", "student.aux is True but train.aux_weight is 0"),
        ("data.scale_range=(2.0,1.0)", r"camvid_b4_r18.py: data: scale_range is \(2.0, 1.0\)"),
        ("schedule.warmup_iters=80001", "schedule: warmup_iters 80001 is more than max_iters 80000"),
        ("schedule.epochs=3", "schedule: max_iters is 80000 and epochs is 3; expected a number for one of them"),
        (
            "schedule.max_iters=None",
            "schedule: max_iters is None and epochs is None; expected a number for one of them",
        ),
        ("optimizer.betas=(0.9,2.0)", r"optimizer.betas.1: .*less than 1; found 2.0"),
        ("eval.mode=slide", "eval: mode='slide' needs crop_size"),
        ("train.precision=fp8", r"train.precision: 'fp8' is not valid; did you mean 'fp32'\?"),
    ],
)
def test_wrong_values_are_refused_by_file_key_and_nearest_choice(option, message):
    with pytest.raises(ConfigError, match=message):
        load(PAIR, option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("student.backbone=resnet81", r"student: .*resnet81.*resnet18"),
        ("student.backbone=mit_b0", r"student: .*mit_b0.*cannot dilate.*output_stride=32"),
        ("distill.feature_pairs=[('stage3','stage9')]", r"distill: .*stage9.*stage"),
        ("distill.feature_pairs=[('stag3','stage3')]", r"distill: unknown teacher tap .*'stag3'.*stage3"),
        ("distill.temperature=0.0", "distill: .*temperature"),
        ("train.class_weights=(1.0,2.0)", "train.class_weights: 2 weights for 11 classes"),
    ],
)
def test_what_only_the_networks_know_is_refused_when_they_are_built(option, message):
    with pytest.raises(ConfigError, match=message):
        build(load(PAIR, option))


def test_missing_weights_say_which_file_and_what_to_do():
    config = load(PAIR, "student.pretrained=pretrained/none.pth", "teacher.weights=pretrained/none.safetensors")
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=r"student.pretrained: .*pretrained/none.pth does not exist.*README"):
            build_student(config, PAIR, CLASSES["camvid"])
        with pytest.raises(ConfigError, match=r"teacher.weights: .*pretrained/none.safetensors does not exist.*train"):
            build_teacher(config, PAIR, CLASSES["camvid"])


@pytest.fixture
def described(tmp_path):
    """A file that says how its network is built, as train_kd.py writes it; not one setting is the default."""
    network = {"backbone": "test_resnet", "head": "pspnet", "output_stride": 16, "width": 24, "dropout": 0.3,
               "drop_path": 0.0, "normalization": "caffe_bgr", "aux": True}  # fmt: skip
    model = build_model(num_classes=11, **network)
    about = {"network": network, "normalization": model.normalization._asdict(), "class_names": CLASSES["camvid"]}
    save_student(tmp_path / "teacher.safetensors", model.state_dict(), about)
    return str(tmp_path / "teacher.safetensors"), model


def teacher_config(**teacher):
    values = load("configs/hmkd/camvid_b4_r18.py", "student.pretrained=None").model_dump() | {"teacher": teacher}
    return validate(values, Experiment, "x.py")


def test_a_teacher_is_built_as_its_weights_say(described):
    weights, expected = described
    teacher = build_teacher(teacher_config(weights=weights), "x.py", CLASSES["camvid"])
    assert teacher.loaded.loaded == len([key for key in expected.state_dict() if not key.startswith("aux_head.")])
    assert (teacher.network.backbone.name, teacher.spec) == ("test_resnet", expected.spec)
    assert teacher.network.normalization == expected.normalization
    assert torch.equal(teacher.network.head.classifier.weight, expected.head.classifier.weight)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"width": 16}, r"teacher.weights: .*does not fit the network.*: by its metadata, .*width=24"),
        ({"normalization": "imagenet"}, r"teacher.weights: .*set normalization='caffe_bgr'"),
        ({"backbone": "test_resnet", "head": "deeplabv3", "output_stride": 16}, r"teacher.weights: .*does not fit"),
    ],
)
def test_what_the_config_says_of_a_teacher_is_not_overruled(described, teacher, message):
    with pytest.raises(ConfigError, match=message):
        build_teacher(teacher_config(weights=described[0], **teacher), "x.py", CLASSES["camvid"])


def test_a_teachers_file_that_is_another_network_than_the_configs_says_which_and_what_to_set(described):
    """Ten of hundreds of missing tensors would not tell the user what to do."""
    teacher = {"backbone": "mit_b0", "head": "segformer"}
    with pytest.raises(ConfigError) as error:
        build_teacher(teacher_config(weights=described[0], **teacher), "x.py", CLASSES["camvid"])
    message = str(error.value)
    assert (
        "this file holds a network of backbone='test_resnet' head='pspnet' width=24 output_stride=16. Of a " in message
    )
    assert (
        "set teacher.backbone=None teacher.head=None teacher.width=None teacher.output_stride=None, or drop" in message
    )
    assert len(message.splitlines()) == 2  # no list of keys


def test_a_teacher_of_which_nobody_says_how_it_is_built(tmp_path):
    save_student(tmp_path / "bare.safetensors", build_model("test_resnet", "pspnet", 11, width=8).state_dict(), {})
    config = teacher_config(weights=str(tmp_path / "bare.safetensors"))
    with pytest.raises(
        ConfigError, match=r"x\.py: teacher\.weights: .*does not say how its network is built: give back"
    ):
        build_teacher(config, "x.py", CLASSES["camvid"])
    with pytest.raises(ConfigError, match="teacher: give both backbone and head, or neither"):
        teacher_config(weights="x", backbone="resnet18")


@pytest.mark.parametrize("source", ["timm", "package:efficientnet_lite2"])
def test_an_encoder_is_no_teacher(source):
    config = teacher_config(weights=source, backbone="tf_efficientnet_lite2", head="deeplabv3", output_stride=16)
    with pytest.raises(ConfigError, match=r"teacher\.weights: .*ImageNet encoder"):
        build_teacher(config, "x.py", CLASSES["camvid"])


def test_a_teacher_of_other_classes(described):
    """Eleven classes of the teacher for two of the data."""
    weights, expected = described
    mapped = ["far"] * 5 + [None] + ["near"] * 5
    teacher = build_teacher(teacher_config(weights=weights, class_map=mapped), "x.py", ("near", "far"))
    assert teacher.spec == expected.spec._replace(num_classes=2)
    assert teacher.network.sources == ((6, 7, 8, 9, 10), (0, 1, 2, 3, 4))
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert teacher(images).logits.shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        (["near"] * 10 + ["fra"], "teacher.class_map: unknown class 'fra'; did you mean 'far'"),
        (["near"] * 11, r"teacher.class_map: class_map maps no class of the network to the classes \[1\]"),
        (["near", "far"], "teacher.weights: .*was trained on 11 classes; the network has 2"),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(described, class_map, message):
    with pytest.raises(ConfigError, match=message):
        build_teacher(teacher_config(weights=described[0], class_map=class_map), "x.py", ("near", "far"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("distill={'_delete_': True, 'methods': []}", r"distill\.methods: .* at least 1 item"),
        (
            "distill={'_delete_': True, 'methods': [{'type': 'hmkd'}, {'type': 'hmkd'}]}",
            "distill: methods holds hmkd, hmkd; expected each type once",
        ),
        (
            "distill={'_delete_': True, 'methods': [{'type': 'hmkd', 'featur': 1.0}]}",
            r"distill\.methods\.0\.featur: unknown",
        ),
        (
            "curriculum={'logit': {'type': 'linea', 'iters': 9}}",
            r"curriculum\.logit\.type: 'linea' is not valid; did you",
        ),
        ("curriculum={'logit': {'type': 'linear', 'iters': 0}}", r"curriculum\.logit\.iters: .*greater than 0"),
    ],
)
def test_methods_and_curriculum_are_validated(option, message):
    with pytest.raises(ConfigError, match=message):
        load("configs/hmkd/camvid_b4_r18.py", option)


def test_several_methods_are_one(tmp_path):
    option = "distill={'_delete_': True, 'methods': [{'type': 'hmkd', 'feature': 0.0, 'logit': 2.0}]}"
    config = load("configs/hmkd/camvid_b4_r18.py", option)
    _, _, distiller = build(config)
    assert distiller.weights == {"task": 1.0, "aux": 0.4, "logit": 2.0}
    (tmp_path / "config.py").write_text(dump_config(config))
    assert load_config(tmp_path / "config.py", Experiment) == config


def test_a_teacher_of_cityscapes_classes_on_camvid():
    """Each of Cityscapes' classes goes where SegNet's grouping puts CamVid's original class of that meaning."""
    original = {
        "road": "Road", "sidewalk": "Sidewalk", "building": "Building", "wall": "Wall", "fence": "Fence",
        "pole": "Column_Pole", "traffic light": "TrafficLight", "traffic sign": "SignSymbol", "vegetation": "Tree",
        "terrain": "VegetationMisc", "sky": "Sky", "person": "Pedestrian", "rider": "Bicyclist", "car": "Car",
        "truck": "Truck_Bus", "bus": "Truck_Bus", "train": "Train", "motorcycle": "MotorcycleScooter",
        "bicycle": "Bicyclist",
    }  # fmt: skip
    group = {member: CLASSES["camvid"][train] for train, _, member in read_table("camvid")}
    config = load("configs/hmkd/cityscapes_to_camvid_b4_r18.py")
    assert config.teacher.class_map == tuple(group[original[name]] for name in CLASSES["cityscapes"])
    _, teacher, _ = build(config)
    assert (teacher.network.model.num_classes, teacher.spec.num_classes) == (19, 11)


def build_with(file, pair):
    """A pair of ``configs/hmkd`` with the method of ``file`` instead of HMKD."""
    section = load_section(file, "distill")
    return section, *build(load(f"configs/hmkd/{pair}.py", f"distill={ {'_delete_': True, **section}!r}"))


PAIRS = pytest.mark.parametrize("pair", ["camvid_b4_r18", "cityscapes_r101_b0"])


@PAIRS
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_one_config_away(name, pair):
    """``configs/_base_/methods/NAME.py`` in place of HMKD builds, between both families, with the defaults' weights."""
    section, student, teacher, distiller = build_with(METHOD_FOLDER / f"{name}.py", pair)
    assert section["type"] == name
    assert len(distiller.weights) > len(distiller.task.weights)
    if name == "hmkd":  # its defaults are hmkd_anchored, the form of older runs
        expected = {"logit": 1.0, **{f"feature/stage{i}-stage{i}": 4.0 for i in (1, 2, 3, 4)}}
    else:
        expected = METHODS[name](student.spec, teacher.spec).weights
    assert distiller.method.weights == expected


VARIANTS = {
    "hmkd_anchored": {"feature", "anchor", "logit"},
    "hmkd_relation": {"feature", "anchor", "relation", "relation_anchor", "logit"},
    "hmkd_released": {"feature", "relation", "logit"},
    "hmkd_released_no_relation": {"feature", "logit"},
    "hmkd_released_stages": {"feature", "relation", "logit", "stage_logit"},
}


@PAIRS
@pytest.mark.parametrize("name", VARIANTS)
def test_hmkds_variants_are_one_config_away(name, pair):
    *_, distiller = build_with(METHOD_FOLDER / f"{name}.py", pair)
    assert distiller.method.weights.keys() == VARIANTS[name]


def test_the_anchored_form_of_hmkd_is_the_default():
    _, student, teacher, distiller = build_with(METHOD_FOLDER / "hmkd_anchored.py", "camvid_b4_r18")
    assert distiller.method.weights == METHODS["hmkd"](student.spec, teacher.spec).weights


def test_every_file_of_a_method_is_tested():
    assert {file.stem for file in METHOD_FOLDER.glob("*.py")} == set(METHODS) | set(VARIANTS)


HOSTILE = [
    "train.batch_size=" + "-" * 200000 + "1",
    "train.seed=" + "+".join(["1"] * 50000),
    "train.batch_size=" + "[" * 5000,
    "train.batch_size=" + "9" * 5000,
    "train.batch_size=10**9",
    "train.seed=1\0",
    "optimizer.lr=1e999",
    "optimizer.lr=nan",
    "data.workers=__import__('os').system('touch {target}')",
    "data.workers={{{{ fileBasename }}}}",
    "data.workers=$HOME",
    "data={{'_delete_': True}}",
    "__class__=1",
    "data.__init__.x=1",
    "data..x=1",
    ".=1",
    "_base_={target}",
    "train={{1: 2}}",
    "data.crop_size.9=5",
]


@pytest.mark.parametrize("option", HOSTILE, ids=lambda option: option[:24].encode("unicode_escape").decode())
def test_hostile_options_are_refused_and_nothing_in_them_runs(experiments, tmp_path, option):
    option = option if len(option) > 200 else option.format(target=tmp_path / "owned")
    with pytest.raises(ConfigError):
        load_config(experiments["alone"], Experiment, [option])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("text", ["__import__('os').system('touch {}')", "{{{{ fileDirname }}}}", "$HOME", "${{HOME}}"])
def test_a_text_stays_the_text_it_is(experiments, tmp_path, text):
    """No call, no template of mmengine, no variable of the shell is put in its place."""
    text = text.format(tmp_path / "owned")
    assert load_config(experiments["alone"], Experiment, [f"data.root={text}"]).data.root == text
    assert not (tmp_path / "owned").exists()


def test_a_cache_and_skipped_samples_do_not_go_together(experiments):
    options = ["teacher.cache=kept", "data.distinct_epochs=1", "data.on_bad_sample=skip"]
    with pytest.raises(ConfigError, match=r"teacher.cache is set and data.on_bad_sample is 'skip'"):
        load_config(experiments["hmkd"], Experiment, options)


class Bare:
    def __init__(self, student, teacher, weight): ...


class Odd:
    def __init__(self, student, teacher, network: torch.nn.Module): ...


class Free:
    def __init__(self, student, teacher, weight: "float" = 1.0, *others, **more): ...


@pytest.mark.parametrize(
    ("component", "message"),
    [(Bare, "argument 'weight' of 'mine' needs a type annotation"), (Odd, "arguments of 'mine' cannot be config keys")],
)
def test_a_component_whose_arguments_are_no_keys_is_named(component, message):
    with pytest.raises(ValueError, match=rf"test_configs: (the )?{message}"):
        component_section(MethodSection, "mine", component)


def test_the_keys_of_a_component_are_its_named_arguments():
    section = component_section(MethodSection, "mine", Free)
    assert section.model_validate({"type": "mine", "weight": 2.0}).model_dump() == {"type": "mine", "weight": 2.0}
    assert set(section.model_fields) == {"type", "weight"}


def test_every_path_of_a_config_may_begin_with_the_home_folder(experiments, monkeypatch):
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv("USERPROFILE", "/somebody")  # on Windows
    data = ("root", "train_list", "val_list", "test_list", "packed")
    keys = [*(f"data.{key}" for key in data), "student.pretrained", "teacher.weights", "teacher.cache"]
    options = [*(f"{key}=~/x/{key}" for key in keys), "data.distinct_epochs=1"]
    config = load_config(experiments["hmkd"], Experiment, options).model_dump()
    found = {key: config[key.split(".")[0]][key.split(".")[1]] for key in keys}
    assert found == {key: f"/somebody/x/{key}" for key in keys}
    assert str(train_kd.parse_arguments(["x.py", "--work-dir=~/runs"]).work_dir) == "/somebody/runs"
    assert train_kd.parse_arguments(["x.py", "--resume=~/a.pt"]).resume == "/somebody/a.pt"
