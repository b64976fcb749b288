"""student.init_from starts from a whole network, and student.freeze keeps parts of it as they are."""

import pytest
import timm
import torch

import train_kd
from configs.schema import Experiment
from engine.build import build_student
from engine.checkpoint import save_student
from models import build_model, freeze, load_student
from tests.runs import assert_same, losses, refused, weights
from utils.config import load_config

SHORT = ["schedule.max_iters=2", "eval.interval=2", "log.panel_images=0", "log.grad_norm_interval=1"]
NETWORK = {"backbone": "mit_b0", "head": "segformer", "width": 16}


@pytest.fixture(scope="module")
def class_names(whole):
    return torch.load(whole / "last.pt", weights_only=True)["about"]["class_names"]


@pytest.fixture
def network(tmp_path, class_names):
    """Writes a trained network with some classes; gives its file and tensors."""

    def write(names=class_names, metadata=True):
        torch.manual_seed(7)
        tensors = build_model(num_classes=len(names), **NETWORK).state_dict()
        save_student(
            tmp_path / "old.safetensors", tensors, {"class_names": names, "network": NETWORK} if metadata else {}
        )
        return str(tmp_path / "old.safetensors"), tensors

    return write


def started(experiments, class_names, *options):
    """The student before its first step, and what was printed of its weights."""
    torch.manual_seed(0)
    student, report = build_student(load_config(experiments["alone"], Experiment, options), "a.py", class_names)
    return student.state_dict(), str(report)


@pytest.mark.parametrize("metadata", [True, False])
def test_a_network_of_the_same_classes_is_loaded_whole(experiments, class_names, network, metadata):
    path, tensors = network(metadata=metadata)
    student, said = started(experiments, class_names, f"student.init_from={path}")
    assert_same(student, tensors)
    assert said == f"{path}: hmkd layout, {len(tensors)} tensors loaded into the network"


@pytest.mark.parametrize(("number", "metadata"), [(5, True), (5, False), (11, True)])
def test_the_classifier_of_other_classes_is_left_out_and_it_is_printed(
    experiments, class_names, network, number, metadata
):
    """Another number of classes; or the same number, which have other names."""
    path, tensors = network(class_names[::-1][:number], metadata)
    plain, _ = started(experiments, class_names)
    student, said = started(experiments, class_names, f"student.init_from={path}")
    names = ("head.classifier.bias", "head.classifier.weight")
    assert_same(student, tensors | {name: plain[name] for name in names})
    assert f"loaded into the network without its classifier, 2 skipped ({', '.join(names)}); it has other" in said
    assert said.endswith(f"other classes ({number}) than the data (11): the classifier starts from random weights")


def test_what_cannot_be_fine_tuned_is_refused(experiments, tmp_path):
    def message(*options):
        return refused([experiments["alone"], "--work-dir", tmp_path, "--cfg-options", *options])

    assert "student: pretrained is 'a.pth' and init_from is 'b.pth', which holds a backbone too: set one" in message(
        "student.pretrained=a.pth", "student.init_from=b.pth"
    )
    assert "student.init_from: weights file b.pth does not exist; give a student" in message("student.init_from=b.pth")
    encoder = build_model(num_classes=2, **NETWORK).backbone.state_dict()
    torch.save(encoder, tmp_path / "mit.pth")
    assert "is an ImageNet encoder" in message(f"student.init_from={tmp_path / 'mit.pth'}")


@pytest.mark.parametrize(
    ("parts", "named"), [("backbone", "backbone."), ("head", "head."), ("head.fuse", "head.fuse.")]
)
def test_frozen_parts_stay_bit_for_bit_and_the_others_learn(whole, experiments, network, tmp_path, parts, named):
    path, tensors = network()
    options = [*SHORT, f"student.init_from={path}", f"student.freeze=('{parts}',)"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path / "run"), "--cfg-options", *options])
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    frozen = {name for name in tensors if name.startswith(named)}
    same = {name for name, value in state["student"].items() if torch.equal(value, tensors[name])}
    assert same == frozen  # running statistics too
    parameters = {name for name, _ in build_model(num_classes=11, **NETWORK).named_parameters()}
    all_trained = torch.load(whole / "last.pt", weights_only=True)
    in_optimizer = [sum(len(g["params"]) for g in each["optimizer"]["param_groups"]) for each in (all_trained, state)]
    assert in_optimizer[0] - in_optimizer[1] == len(parameters & frozen)


def test_norms_and_dropout_of_a_frozen_part_are_those_of_evaluation():
    network = build_model(num_classes=2, **NETWORK)
    freeze(network, ["head"])
    assert not any(module.training for module in network.head.modules())
    assert all(module.training for module in network.backbone.modules())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["backbon"], "unknown part 'backbon'; did you mean 'backbone'\\? choices: backbone, head$"),
        (["head.fused"], "unknown part 'head.fused'; did you mean 'head.fuse'\\?"),
        (["backbone", "head"], "'backbone', 'head' are all of the network, so nothing is left to train"),
    ],
)
def test_parts_that_cannot_be_frozen_are_named(parts, message):
    with pytest.raises(ValueError, match=message):
        freeze(build_model(num_classes=2, **NETWORK), parts)


def test_the_config_key_of_a_wrong_part_is_named(experiments, tmp_path):
    message = refused([experiments["alone"], "--work-dir", tmp_path, "--cfg-options", "student.freeze=('hed',)"])
    assert "student.freeze: unknown part 'hed'; did you mean 'head'?" in message


def test_a_frozen_run_resumes_exactly_and_two_ranks_learn_what_one_does(experiments, tmp_path, launch):
    options = [*SHORT, "student.freeze=('backbone',)", "schedule.max_iters=3", "student.dropout=0.0"]
    one, part, two = (tmp_path / name for name in ("one", "part", "two"))
    command = [experiments["hmkd"], "--cfg-options", *options]
    train_kd.main([*command, "train.accumulate=2", "--work-dir", str(one)])
    train_kd.main([*command, "train.accumulate=2", "--work-dir", str(part), "--resume", str(one / "step_1.pt")])
    assert losses(part) == losses(one)[1:]
    assert_same(weights(part / "last.pt"), weights(one / "last.pt"))
    done = launch("train_kd.py", *command, "--work-dir", two, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_a_foundation_backbone_becomes_a_teacher_in_one_command(experiments, tmp_path):
    """A linear head over a frozen plain ViT from timm's file; then that file teaches the student of 'alone'."""
    vit, name = timm.create_model("vit_tiny_patch16_224"), "vit_tiny_patch16_224"
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    network = f"backbone='{name}', head='linear', normalization='inception', pretrained={str(tmp_path / 'vit.pth')!r}"
    (tmp_path / "teacher.py").write_text(
        f"_base_ = [{experiments['alone']!r}]\nstudent = dict(_delete_=True, {network}, freeze=('backbone',))"
    )
    train_kd.main([str(tmp_path / "teacher.py"), "--work-dir", str(tmp_path / "a"), "--cfg-options", *SHORT])
    trained, _ = load_student(tmp_path / "a" / "student.safetensors")
    for key, tensor in trained.backbone.state_dict().items():
        assert torch.equal(tensor, vit.state_dict()[key.removeprefix("net.model.")]), key
    start = torch.load(tmp_path / "a" / "step_1.pt", weights_only=True)["student"]
    assert not torch.equal(trained.head.classifier.weight, start["head.classifier.weight"])

    (tmp_path / "student.py").write_text(
        f"_base_ = [{experiments['alone']!r}]\n"
        f"teacher = dict(weights={str(tmp_path / 'a' / 'student.safetensors')!r})\n"
        "distill = dict(type='hmkd', feature=1.0, logit=1.0, relation=1.0, stage_logit=0.5)"
    )
    train_kd.main([str(tmp_path / "student.py"), "--work-dir", str(tmp_path / "b"), "--cfg-options", *SHORT])
    assert (tmp_path / "b" / "student.safetensors").is_file()


def test_an_output_stride_of_32_leaves_a_plain_vit_its_own_and_its_file_says_both(tmp_path):
    network = {"backbone": "vit_tiny_patch16_224", "head": "deeplabv3", "output_stride": 32, "width": 8}
    model = build_model(num_classes=2, **network)
    about = {"network": network, "class_names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]}
    torch.save({"student": model.state_dict(), "about": about}, tmp_path / "vit.pt")
    assert load_student(tmp_path / "vit.pt")[0].tap_info["stage4"].stride == 16
