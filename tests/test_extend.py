"""The examples of docs/extend.md run as they stand there, in a folder outside the repository."""

import json
import os
import re
import subprocess
import sys

import pytest

from configs.schema import Experiment
from engine.checkpoint import load_checkpoint
from models import load_student
from tests.conftest import DISTILL, EXPERIMENT, ROOT
from utils.config import ConfigError, load_config

FILES = dict(re.findall(r"^`(\w+\.py)`\n\n```python\n(.*?)^```", (ROOT / "docs/extend.md").read_text(), re.M | re.S))
THREE_STEPS = "schedule = dict(max_iters=3)\n"  # of two assignments to one name the last counts


@pytest.fixture
def command(tmp_path, streets, teacher_weights):
    """Writes the page's files into a folder, and starts commands of the repository in that folder."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def start(*arguments, teacher=False):
        distillation = DISTILL.format(weights=str(teacher_weights)) if teacher else ""
        (tmp_path / "base.py").write_text(EXPERIMENT.format(root=str(streets)) + THREE_STEPS + distillation)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, str(ROOT / arguments[0]), *arguments[1:]], cwd=tmp_path, capture_output=True, text=True,
            env={**environment, "OMP_NUM_THREADS": "1"}, timeout=240,
        )  # fmt: skip

    return start


def training_entries(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "task" in entry]


def test_the_page_holds_a_module_and_a_config_for_each_kind():
    modules = {f"my_{kind}.py" for kind in ("method", "backbone", "head", "dataset")}
    assert modules < FILES.keys()
    configs = [text for name, text in FILES.items() if name not in modules]
    assert {re.search(r'custom_imports = \["(\w+)"\]', text)[1] + ".py" for text in configs} == modules


@pytest.mark.parametrize("config", ["my_network.py", "my_other_network.py", "my_data.py"])
def test_an_example_trains_and_is_evaluated(command, tmp_path, config):
    done = command("train_kd.py", config, "--work-dir", "run")
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in training_entries(tmp_path / "run")] == [1, 2, 3]
    done = command("eval.py", config, "run/student.safetensors", "--json", "result.json")
    assert done.returncode == 0, done.stderr
    classes = json.loads((tmp_path / "result.json").read_text())["class_names"]
    assert len(classes) == (2 if config == "my_data.py" else 11)


def test_the_method_trains_resumes_and_is_evaluated(command, tmp_path):
    run = tmp_path / "run"
    done = command("train_kd.py", "my_distillation.py", "--work-dir", "run", teacher=True)
    assert done.returncode == 0, done.stderr
    entries = training_entries(run)
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert all(0 < entry["cosine"] < 1 for entry in entries)

    # The third step again, from the resolved config and the checkpoint of the second.
    first = load_checkpoint(run / "last.pt")["student"]
    for name in ("last.pt", "step_3.pt", "student.safetensors"):
        (run / name).unlink()
    done = command("train_kd.py", "run/config.py", "--work-dir", "run", "--resume", "auto", teacher=True)
    assert done.returncode == 0, done.stderr
    again = load_checkpoint(run / "last.pt")["student"]
    assert all(first[name].equal(again[name]) for name in first)

    done = command("eval.py", "my_distillation.py", "run/student.safetensors", teacher=True)
    assert done.returncode == 0, done.stderr
    assert "pixel accuracy" in done.stdout


SAVE_AND_LOAD = """
import my_backbone
from engine.checkpoint import save_student
from models import build_model, load_student

network = {"backbone": "small_cnn", "head": "segformer", "width": 8}
metadata = {"network": network, "class_names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]],
            "config": {"custom_imports": ["my_backbone"]}}
model = build_model(num_classes=2, **network)
save_student("own.safetensors", model.state_dict(), metadata)
loaded, _ = load_student("own.safetensors")
assert loaded.backbone.stem[0].weight.equal(model.backbone.stem[0].weight)
"""


def test_a_network_of_an_own_backbone_is_loaded_only_after_its_module_was_imported(tmp_path, monkeypatch):
    (tmp_path / "my_backbone.py").write_text(FILES["my_backbone.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    done = subprocess.run([sys.executable, "-c", SAVE_AND_LOAD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ValueError, match="unknown backbone 'small_cnn'.*import my_backbone first"):
        load_student("own.safetensors")
    assert "my_backbone" not in sys.modules


def test_keys_of_an_own_method_are_validated(command, tmp_path):
    wrong = "distill = dict(wieght=1.0, temperature='hot')"
    (tmp_path / "my_config.py").write_text(f"_base_ = ['my_distillation.py']\n{wrong}\n")
    done = command("train_kd.py", "my_config.py", teacher=True)
    assert "my_config.py: distill.wieght: unknown key; did you mean 'weight'?" in done.stderr
    assert "my_config.py: distill.temperature: Input should be a valid number; found 'hot' (str)" in done.stderr


TAKEN = "from losses.base import METHODS\n@METHODS.register('kd')\nclass Mine: ...\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('half written')", "RuntimeError: half written"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("def broken(:", "SyntaxError"),
        (TAKEN, "'kd' is registered twice, in losses.kd and in my_module"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_error(experiments, tmp_path, monkeypatch, text, message):
    (tmp_path / "my_module.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(experiments["alone"], Experiment, ["custom_imports=['my_module']"])
    start = f"{experiments['alone']}: custom_imports: cannot import 'my_module': "
    assert str(error.value).startswith(start)
    assert message in str(error.value)


def test_the_working_directory_is_importable_for_custom_imports_alone(experiments, tmp_path, monkeypatch):
    (tmp_path / "my_sibling.py").write_text("VALUE = 3\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "part.py").write_text("from my_sibling import VALUE\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(experiments["alone"], Experiment, ["custom_imports=['my_package.part']"])
    assert config.custom_imports == ("my_package.part",)
    assert sys.modules["my_package.part"].VALUE == 3
    (tmp_path / "my_other_sibling.py").write_text("")
    with pytest.raises(ModuleNotFoundError):
        __import__("my_other_sibling")


@pytest.mark.parametrize("value", ["'my_module'", "{'imports': ['my_module']}", "[3]"])
def test_custom_imports_of_another_type_are_refused(experiments, value):
    with pytest.raises(ConfigError, match="custom_imports"):
        load_config(experiments["alone"], Experiment, [f"custom_imports={value}"])
