import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from models import build_model, load_weights
from models.mit import VARIANTS, MixTransformer
from tests.models.oracles import randomize


def snapshot(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key


@pytest.fixture(scope="module")
def segformer_state():
    return randomize(build_model("mit_b0", "segformer", 5, width=16)).state_dict()


@pytest.fixture
def segformer():
    return build_model("mit_b0", "segformer", 5, width=16)


@pytest.fixture(scope="module")
def resnet():
    return randomize(torchvision.models.resnet18())


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"student": state, "optimizer": {"state": {0: torch.zeros(1)}}, "step": 7, "config": "x = 1"},
        lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3},
        lambda state: {"model": {"module": state}},
    ],
    ids=["bare", "ours", "ddp", "nested"],
)
def test_whole_network_in_any_wrapper(tmp_path, segformer, segformer_state, wrap):
    report = load_weights(segformer, save(tmp_path / "x.pt", wrap(segformer_state)))
    assert_same(segformer.state_dict(), segformer_state)
    assert (report.layout, report.part, report.loaded, report.skipped) == ("hmkd", "all", len(segformer_state), ())
    assert f"{len(segformer_state)} tensors loaded into the network" in str(report)


def test_whole_network_from_safetensors(tmp_path, segformer, segformer_state):
    path = tmp_path / "student.safetensors"
    save_file(segformer_state, path, metadata={"config": "x = 1"})
    load_weights(segformer, path)
    assert_same(segformer.state_dict(), segformer_state)


def test_backbone_of_a_whole_network(tmp_path, segformer, segformer_state):
    before = snapshot(segformer.head)
    report = load_weights(segformer, save(tmp_path / "x.pt", segformer_state), part="backbone")
    assert_same(segformer.head.state_dict(), before)
    assert_same(
        segformer.backbone.state_dict(),
        {key.removeprefix("backbone."): t for key, t in segformer_state.items() if key.startswith("backbone.")},
    )
    assert report.skipped == tuple(key for key in segformer_state if key.startswith("head."))


@pytest.mark.parametrize("output_stride", [8, 32])
def test_imagenet_resnet(tmp_path, resnet, output_stride):
    model = build_model("resnet18", "deeplabv3", 5, output_stride, width=8)
    report = load_weights(model, save(tmp_path / "resnet18.pth", resnet.state_dict()), part="backbone")
    expected = {key: tensor for key, tensor in resnet.state_dict().items() if not key.startswith("fc.")}
    assert_same(model.backbone.net.state_dict(), expected)
    assert report.loaded == len(expected)
    assert report.skipped == ("fc.weight", "fc.bias")
    assert "fc.weight, fc.bias" in str(report)


def test_imagenet_mit(tmp_path, segformer):
    encoder = randomize(MixTransformer(*VARIANTS["mit_b0"])).state_dict()
    file = {**encoder, "head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    report = load_weights(segformer, save(tmp_path / "mit_b0.pth", file), part="backbone")
    assert_same(segformer.backbone.state_dict(), encoder)
    assert (report.loaded, report.skipped) == (len(encoder), ("head.weight", "head.bias"))


def test_batch_counters_may_be_absent(tmp_path, resnet):
    model = build_model("resnet18", "deeplabv3", 5, width=8)
    file = {key: tensor for key, tensor in resnet.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_weights(model, save(tmp_path / "resnet18.pth", file), part="backbone")
    assert torch.equal(model.backbone.net.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_auxiliary_head_of_the_file_may_be_left_out(tmp_path, segformer, segformer_state):
    file = build_model("mit_b0", "segformer", 5, width=16, aux=True).state_dict()
    report = load_weights(segformer, save(tmp_path / "x.pt", file))
    assert report.skipped == tuple(key for key in file if key.startswith("aux_head."))
    assert len(report.skipped) == 8
    assert report.loaded == len(segformer_state)


def test_auxiliary_head_is_loaded_where_both_have_one(tmp_path):
    source, model = (build_model("mit_b0", "segformer", 5, width=16, aux=True) for _ in range(2))
    assert load_weights(model, save(tmp_path / "x.pt", source.state_dict())).skipped == ()
    assert_same(model.state_dict(), source.state_dict())


def test_auxiliary_head_of_the_network_may_not_stay_random(tmp_path, segformer_state):
    model = build_model("mit_b0", "segformer", 5, width=16, aux=True)
    with pytest.raises(ValueError, match=r"missing in the file: aux_head\.block\.0\.weight \(40x160x3x3\)"):
        load_weights(model, save(tmp_path / "x.pt", segformer_state))


def test_an_encoder_is_no_segmentation_model(tmp_path, resnet):
    model = build_model("resnet18", "deeplabv3", 5, width=8)
    with pytest.raises(ValueError, match=r"resnet18\.pth is an ImageNet encoder .* not a segmentation model"):
        load_weights(model, save(tmp_path / "resnet18.pth", resnet.state_dict()))


def test_other_class_count_names_both(tmp_path, segformer_state):
    model = build_model("mit_b0", "segformer", 19, width=16)
    with pytest.raises(ValueError, match=r"x\.pt was trained on 5 classes; the network has 19"):
        load_weights(model, save(tmp_path / "x.pt", segformer_state))


def drop(state):
    state.pop("backbone.block1.0.attn.q.weight")


def add(state):
    state["backbone.block9.0.attn.q.weight"] = torch.zeros(2, 3)


def reshape(state):
    state["backbone.norm4.weight"] = torch.zeros(7)


@pytest.mark.parametrize("part", ["all", "backbone"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"1 missing in the file: backbone\.block1\.0\.attn\.q\.weight \(32x32\)"),
        (add, r"1 unknown to the network: backbone\.block9\.0\.attn\.q\.weight \(2x3\)"),
        (reshape, r"1 of another shape: backbone\.norm4\.weight \(7 in the file, 256 in the network\)"),
    ],
)
def test_strict_and_all_or_nothing(tmp_path, segformer, segformer_state, part, damage, message):
    state = dict(segformer_state)
    damage(state)
    before = snapshot(segformer)
    with pytest.raises(ValueError, match=message) as error:
        load_weights(segformer, save(tmp_path / "x.pt", state), part)
    assert "x.pt" in str(error.value)
    assert_same(segformer.state_dict(), before)


def test_long_lists_of_keys_are_cut_at_ten(tmp_path, resnet, segformer):
    with pytest.raises(ValueError, match="unknown to the network") as error:
        load_weights(segformer, save(tmp_path / "resnet18.pth", resnet.state_dict()), part="backbone")
    message = str(error.value)
    assert "120 unknown to the network" in message
    assert "and 110 more" in message
    assert message.count("backbone.net.") == 10


def test_missing_file_is_named(tmp_path, segformer):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        load_weights(segformer, tmp_path / "nowhere.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as a checkpoint .*: it is damaged, or is no checkpoint"),
        (b"\0" * 99, "cannot be read as a checkpoint"),
        (b"\n<!DOCTYPE html>", "is a web page, not weights: its link is dead"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, segformer, suffix, content, reason):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.{suffix} {reason}"):
        load_weights(segformer, path)


def test_whole_networks_and_programs_are_refused_with_the_reason(tmp_path, segformer):
    torch.save(segformer, tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match=r"model\.pth cannot be read .*SegModel.* more than tensors, which is refused .*--trust"
    ):
        load_weights(segformer, tmp_path / "model.pth")
    torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"program\.pt cannot be read .*TorchScript.*which is refused"):
        load_weights(segformer, tmp_path / "program.pt")
    torch.save(segformer.state_dict(), tmp_path / "four.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match=r"four\.pth cannot be read .*--trust"):
        load_weights(segformer, tmp_path / "four.pth")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("x", "metadata is 'x': Input should be a valid dictionary"),
        ({"network": "x"}, "network is 'x': Input should be a valid dictionary"),
        ({"network": {"backbone": "mit_b0"}}, "network.head is .*: Field required"),
        ({"network": {"backbone": "mit_b0", "head": "segformer", "width": "16"}}, "network.width is '16'"),
        ({"network": {"backbone": "mit_b0", "head": "segformer", "evil": 1}}, "network.evil is 1"),
        ({"normalization": "imagenet"}, "normalization is 'imagenet'"),
        ({"normalization": {"mean": [0, 0, 0], "std": [1, 1, 0], "bgr": False}}, "normalization.std.2 is 0"),
        (
            {"normalization": {"mean": [0, 0, float("nan")], "std": [1, 1, 1], "bgr": False}},
            "normalization.mean.2 is nan",
        ),
        ({"taps": 3}, "taps is 3: "),
        ({"class_names": 5}, "class_names is 5: "),
        ({"palette": [[999, 0, 0]]}, "palette.0.0 is 999: Input should be less than or equal to 255"),
        ({"class_names": ["a", "b"], "palette": [[0, 0, 0]]}, "2 class_names and 1 colours"),
        ({"config": {"eval": 5}}, "config.eval is 5: "),
    ],
)
def test_damaged_metadata_is_named(tmp_path, segformer, segformer_state, about, message):
    before = snapshot(segformer)
    with pytest.raises(ValueError, match=rf"x\.pt: its metadata is damaged: .*{message}"):
        load_weights(segformer, save(tmp_path / "x.pt", {"student": segformer_state, "about": about}))
    assert_same(segformer.state_dict(), before)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"backbone": "resnetaa50"}, "is a resnetaa50; the network's backbone is resnet18"),
        ({"output_stride": 8}, "was trained at output_stride=8; the network has 16"),
    ],
)
def test_what_no_tensor_shows_is_compared(tmp_path, network, message):
    model = build_model("resnet18", "deeplabv3", 5, 16, width=8)
    about = {"network": {"backbone": "resnet18", "head": "deeplabv3", "output_stride": 16} | network}
    with pytest.raises(ValueError, match=message):
        load_weights(model, save(tmp_path / "x.pt", {"student": model.state_dict(), "about": about}))


def test_a_students_file_that_is_another_network_says_which(tmp_path, segformer, segformer_state):
    about = {"network": {"backbone": "mit_b0", "head": "segformer", "width": 16}}
    path = save(tmp_path / "x.pt", {"student": segformer_state, "about": about})
    resnet18 = build_model("resnet18", "deeplabv3", 5, width=8)
    with pytest.raises(
        ValueError, match=r"network of backbone='mit_b0' head='segformer' width=16\..* of its run\n  ten"
    ):
        load_weights(resnet18, path)
    with pytest.raises(
        ValueError, match=r"network of backbone='mit_b0': set student\.backbone='mit_b0'\n  tensors: 100 missing"
    ):
        load_weights(resnet18, path, part="backbone")
    damaged = {key: tensor for key, tensor in segformer_state.items() if key != "backbone.norm4.weight"}
    with pytest.raises(ValueError, match=r"1 missing in the file: backbone\.norm4\.weight"):
        load_weights(segformer, save(tmp_path / "x.pt", {"student": damaged, "about": about}))


def test_a_prefix_that_only_some_names_have_is_refused(tmp_path, segformer, segformer_state):
    both = {**segformer_state, "module.head.classifier.weight": torch.zeros(5, 16, 1, 1)}
    with pytest.raises(ValueError, match=r"1 unknown to the network: module\.head\.classifier\.weight"):
        load_weights(segformer, save(tmp_path / "x.pt", both))


def named(state, prefix):
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["model.", "net.", "module._orig_mod.", "student.", "architecture.", "any.other."])
@pytest.mark.parametrize("nested", [False, True])
def test_a_prefix_of_all_names_is_stripped_and_reported(tmp_path, segformer, segformer_state, prefix, nested):
    state = named(segformer_state, prefix)
    report = load_weights(segformer, save(tmp_path / "x.pt", {"state_dict": state} if nested else state))
    assert_same(segformer.state_dict(), segformer_state)
    assert str(report).endswith(f"; {prefix!r} stripped from all names")


def test_a_prefix_of_another_layout_and_of_timms_names_is_stripped(tmp_path, resnet):
    model = build_model("resnet18", "deeplabv3", 5, width=8)
    report = load_weights(
        model, save(tmp_path / "x.pt", {"state_dict": named(resnet.state_dict(), "model.")}), "backbone"
    )
    assert torch.equal(model.backbone.net.conv1.weight, resnet.conv1.weight)
    assert "stripped" in str(report)
    own = timm.create_model("mobilenetv3_small_050")
    model = build_model("mobilenetv3_small_050", "deeplabv3", 5, width=8)
    report = load_weights(model, save(tmp_path / "y.pt", named(own.state_dict(), "net.")), "backbone")
    assert torch.equal(model.backbone.net.conv_stem.weight, own.conv_stem.weight)
    assert "'net.' stripped" in str(report)


SETS = [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("state_dict", "ema"), ("student", "ema")]


@pytest.mark.parametrize(("raw", "ema"), SETS)
def test_of_several_sets_of_weights_the_choice_is_said_and_the_other_can_be_chosen(
    tmp_path, segformer, segformer_state, raw, ema
):
    averaged = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in segformer_state.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(1)}}}
    file = {ema: named(averaged, "module."), raw: segformer_state, "optimizer": optimizer}
    path = save(tmp_path / "x.pt", file)
    text = str(load_weights(segformer, path))
    assert text.endswith(f"; the weights under {raw!r} of x.pt (it also holds {ema}: choose one with {path}#{ema})")
    assert_same(segformer.state_dict(), segformer_state)
    for name in ("ema", ema):
        report = load_weights(segformer, f"{path}#{name}")
        assert_same(segformer.state_dict(), averaged)
        assert (report.path, report.source) == (path, f"{path}#{name}")
        assert f"the weights under {ema!r} of x.pt" in str(report)
    with pytest.raises(ValueError, match=rf"no set of weights.* 'swa'; its sets are: {ema}, {raw}$"):
        load_weights(segformer, f"{path}#swa")


def test_one_set_of_weights_needs_no_choice(tmp_path, segformer, segformer_state):
    file = {"student": segformer_state, "method": {"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}}
    assert load_weights(segformer, save(tmp_path / "x.pt", file)).notes == ()
    with pytest.raises(ValueError, match=r"or choose one of its sets of weights, such as .*y\.pt#ema"):
        load_weights(segformer, save(tmp_path / "y.pt", {"ema": segformer_state}))


def test_one_of_the_networks_of_a_file_is_chosen_by_the_beginning_of_its_names(tmp_path, segformer, segformer_state):
    both = {
        **named(segformer_state, "student."),
        "teacher.conv.weight": torch.zeros(1),
        "criterion.weight": torch.zeros(5),
    }
    path = save(tmp_path / "x.ckpt", {"state_dict": both})
    with pytest.raises(ValueError, match="no known layout: .*FILE#NAME reads only the keys that begin with NAME"):
        load_weights(segformer, path)
    load_weights(segformer, f"{path}#student")
    assert_same(segformer.state_dict(), segformer_state)


def test_a_file_whose_name_has_a_number_sign_is_read(tmp_path, segformer, segformer_state):
    load_weights(segformer, save(tmp_path / "run#3.pt", segformer_state))
    assert_same(segformer.state_dict(), segformer_state)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, segformer, segformer_state, suffix):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        save(whole, segformer_state)
    else:
        save_file(segformer_state, whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    before = snapshot(segformer)
    with pytest.raises(ValueError, match=rf"cut\.{suffix} cannot be read"):
        load_weights(segformer, cut)
    assert_same(segformer.state_dict(), before)


class Payload:
    """Something only an unsafe load would bring to life."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"step": 3, "optimizer": {}}, r"holds keys step, optimizer; expected tensors by name"),
        ([1, 2], "holds a list; expected tensors by name"),
        ({}, "expected tensors by name"),
        ({"conv.weight": torch.zeros(1)}, r"no known layout: its keys are conv\.weight; known are hmkd"),
        ({"student": Payload()}, r"cannot be read .*tests\.models\.weights\.test_load\.Payload.* more than tensors"),
    ],
)
def test_a_file_without_known_weights_is_refused(tmp_path, segformer, content, message):
    with pytest.raises(ValueError, match=message):
        load_weights(segformer, save(tmp_path / "x.pt", content))


def test_part_is_checked(tmp_path, segformer, segformer_state):
    with pytest.raises(ValueError, match="part is 'encoder'; expected 'all', 'backbone' or 'body'"):
        load_weights(segformer, save(tmp_path / "x.pt", segformer_state), part="encoder")
