"""Teachers of other libraries in a run: class maps, training, resume, the cache and evaluation."""

import json

import pytest
import torch

import eval as evaluation
import train_kd
from configs.schema import Experiment
from engine.data import build_split, build_train_stream
from engine.teacher import build_teacher, build_teacher_cache
from tests.engine.test_teacher import ALONE, load, losses

MODULES = "python:tests.models.adapters.modules"
STATISTICS = "{'mean': (0., 0., 0.), 'std': (1., 1., 1.), 'scale': 1.}"
TAPS = ", 'taps': {'head': 'stem', 'stage3': 'deep'}"


def build(path, *options, names=None):
    config = load(path, *options)
    return build_teacher(config, "x.py", names or build_split(config, "x.py", "val").class_names)


def plain(more="") -> str:
    return f"teacher={{'_delete_': True, 'source': '{MODULES}:plain', 'normalization': {STATISTICS}{more}}}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ", 'backbone': 'resnet18'",
            "teacher: backbone is set and source is 'python:.*: set backbone=None, or source=None",
        ),
        (", 'width': 8", "width is set and source is 'python:"),
        (", 'sauce': 8", "teacher.sauce: unknown key; did you mean 'source'"),
    ],
)
def test_keys_of_our_networks_and_of_sources_exclude_each_other(experiments, more, message):
    with pytest.raises(ValueError, match=message):
        load(experiments["hmkd"], plain(more))
    with pytest.raises(ValueError, match="teacher: taps is set and source is None: set taps=None, or give a source"):
        load(experiments["hmkd"], "teacher.taps={'a': 'b'}")
    with pytest.raises(ValueError, match="teacher: weights is missing"):
        load(experiments["hmkd"], "teacher.weights=None")
    with pytest.raises(ValueError, match="teacher.source: unknown kind of source 'smb'; did you mean 'smp'"):
        load(experiments["hmkd"], "teacher.source=smb:Unet")


def test_statistics_are_for_images_in_0_to_scale(experiments):
    teacher = build(experiments["hmkd"], plain())
    assert teacher.network.normalization == ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), False)
    given = "teacher.normalization={'mean': (104., 117., 123.), 'std': (1., 1., 1.), 'bgr': True}"
    section = load(experiments["hmkd"], given).teacher.normalization
    assert section.in_pixels == ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), True)


SEVERAL = ", ".join(f"{{'type': '{name}'}}" for name in ("kd", "cirkd", "cwd", "ifvd", "skd", "dist"))
METHODS = {
    "hmkd": "distill={'_delete_': True, 'type': 'hmkd', 'feature_pairs': [('stage3', 'stage3')]}",
    "at": "distill={'_delete_': True, 'type': 'at', 'pairs': [('stage3', 'stage3')]}",
    "kd": "distill={'_delete_': True, 'type': 'kd'}",
    "several": f"distill={{'_delete_': True, 'methods': [{SEVERAL}]}}",
}


def test_a_module_of_the_user_trains_a_student_and_resumes_exactly(experiments, tmp_path):
    def train(folder, *arguments):
        options = [plain(TAPS), METHODS["hmkd"], "schedule.max_iters=2", "teacher.scale=0.5"]
        train_kd.main([experiments["hmkd"], "--work-dir", str(folder), *arguments, "--cfg-options", *options])

    train(tmp_path)
    whole = losses(tmp_path)
    for file in ("last.pt", "step_2.pt", "student.safetensors"):
        (tmp_path / file).unlink()
    train(tmp_path, "--resume", "auto")
    assert len(whole) == 2
    assert whole[0] != whole[1] > 0
    assert losses(tmp_path) == whole


def test_methods_take_their_taps_by_name(experiments, tmp_path):
    options = [plain(TAPS), METHODS["several"], "schedule.max_iters=1"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("kd", "cirkd", "cwd", "ifvd", "skd", "dist"):
        assert any(term.startswith(name) and line[term] > 0 for term in line)


def test_kept_outputs_belong_to_the_weights_and_the_source(experiments, tmp_path):
    options = ["data.distinct_epochs=1"]
    cache = f", 'cache': '{tmp_path}', 'cache_taps': ('stage3',)"

    def build_with_cache(more):
        config = load(experiments["hmkd"], *options, plain(TAPS + cache + more))
        stream = build_train_stream(config, "x.py")
        teacher = build_teacher(config, "x.py", build_split(config, "x.py", "val").class_names)
        teacher.cache = build_teacher_cache(config, "x.py", stream, teacher, ALONE)
        return teacher, torch.stack([stream[0]["image"]])

    teacher, x = build_with_cache("")
    kept, expected = teacher(x, [0]), teacher(x)
    assert torch.equal(kept.logits, expected.logits.half().float())
    assert torch.equal(kept.taps["stage3"], expected.taps["stage3"].half().float())
    facts = json.loads((tmp_path / "index.json").read_text())["teacher"]
    assert facts["weights"] == teacher.loaded.digest()
    assert facts["weights"] is not None
    build_with_cache("")  # the same again
    with pytest.raises(ValueError, match="teacher.prefix_tokens: None -> 1"):
        build_with_cache(", 'prefix_tokens': 1")


def test_eval_measures_a_wrapped_teacher_and_writes_its_digest(experiments, tmp_path, capsys):
    arguments = [experiments["hmkd"], "--teacher", "--json", str(tmp_path / "result.json"), "--cfg-options", plain()]
    evaluation.main(arguments)
    result = json.loads((tmp_path / "result.json").read_text())
    teacher = build(experiments["hmkd"], plain())
    assert result["sha256"] == teacher.loaded.digest()
    assert result["checkpoint"] == f"{MODULES}:plain"
    assert (
        Experiment.model_validate(load(experiments["hmkd"], plain()).model_dump()).teacher.source == f"{MODULES}:plain"
    )


def test_logit_methods_refuse_a_teacher_with_features_only(experiments, tmp_path):
    features = plain(", 'output': False, 'taps': {'stage3': 'deep'}")
    with pytest.raises(SystemExit):
        train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", features, METHODS["kd"]])
    options = [features, METHODS["at"], "schedule.max_iters=2"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path / "at"), "--cfg-options", *options])
    assert len(losses(tmp_path / "at")) == 2
