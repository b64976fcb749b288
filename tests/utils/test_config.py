import shlex
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from utils.config import ConfigError, changed_values, config_errors, dump_config, load_config, parse_options


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Optimizer(Section):
    type: Literal["sgd", "adamw"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.99)


class Schema(Section):
    optimizer: Optimizer
    name: str | None = None


@pytest.fixture
def write(tmp_path):
    def write(text, name="experiment.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


GOOD = "optimizer = dict(type='sgd', lr=0.1, betas=[0.5, 0.6])\n"


def test_reads_and_inherits(write):
    write(GOOD, "base.py")
    config = load_config(write("_base_ = ['base.py']\noptimizer = dict(lr=0.2)\n"), Schema)
    assert config.optimizer.model_dump() == {"type": "sgd", "lr": 0.2, "betas": (0.5, 0.6)}


def test_delete_replaces_a_whole_section(write):
    write(GOOD, "base.py")
    config = load_config(write("_base_ = ['base.py']\noptimizer = dict(_delete_=True, type='adamw', lr=1.0)\n"), Schema)
    assert config.optimizer.model_dump() == {"type": "adamw", "lr": 1.0, "betas": (0.9, 0.99)}


def test_options_override(write):
    config = load_config(write(GOOD), Schema, ["optimizer.lr=3e-4", "optimizer.betas=(0.1,0.2)", "name=run"])
    assert config.optimizer.lr == 3e-4
    assert config.optimizer.betas == (0.1, 0.2)
    assert config.name == "run"


class Tables(Section):
    ids: dict[int, int] | tuple[int, ...] | None = None
    colors: dict[tuple[int, int, int], int] | None = None


@pytest.mark.parametrize("before", ["{0: 0, 1: 1}", "[0, 1]", "None"])
def test_a_table_of_an_option_replaces_what_the_file_has(write, before):
    path = write(f"ids = {before}\ncolors = {{(0, 0, 0): 0}}\n")
    config = load_config(path, Tables, ["ids={0:0,255:1}", "colors={(9,9,9):1}"])
    assert config.model_dump() == {"ids": {0: 0, 255: 1}, "colors": {(9, 9, 9): 1}}
    assert load_config(path, Tables, ["ids={0:0,255:1}"]).colors == {(0, 0, 0): 0}


def test_a_number_where_text_is_expected_is_refused_with_the_quotes_that_a_shell_leaves(write):
    path = write(GOOD)
    with pytest.raises(ConfigError) as error:
        load_config(path, Schema, ["name=2024"])
    message = str(error.value)
    assert message.endswith("""found 2024 (int): write it in quotes, after --cfg-options in two pairs: name='"2024"'""")
    assert load_config(path, Schema, shlex.split(message.rpartition(": ")[2])).name == "2024"


def test_options_are_literals_and_never_evaluated(tmp_path):
    target = tmp_path / "owned"
    hostile = f"__import__('os').mkdir('{target}')"
    assert parse_options([f"a={hostile}", "b=[1, 2]", "c=None", "d=1e-3", "e=x=y"]) == {
        "a": hostile, "b": [1, 2], "c": None, "d": 1e-3, "e": "x=y",
    }  # fmt: skip
    assert not target.exists()
    for option in ("lr", "=3"):
        with pytest.raises(ConfigError, match="section.key=value"):
            parse_options([option])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optimizer = dict(type='sgd', lr=0.1, lrr=1)",
            r"experiment.py: optimizer.lrr: unknown key; did you mean 'lr'\?",
        ),
        ("optimizer = dict(type='sdg', lr=0.1)", r"optimizer.type: 'sdg' is not valid; did you mean 'sgd'\?"),
        ("optimizer = dict(type='sgd', lr='fast')", r"optimizer.lr: .*valid number.*found 'fast' \(str\)"),
        ("optimizer = dict(type='sgd')", "optimizer.lr: missing"),
        ("optimizr = dict(type='sgd', lr=0.1)", r"optimizr: unknown key; did you mean 'optimizer'\?"),
        ("optimizer = dict(type='sgd', lr=0.1", "experiment.py: cannot be read: SyntaxError"),
        ("_base_ = ['gone.py']", "experiment.py: cannot be read: .*gone.py"),
    ],
)
def test_wrong_configs_are_refused_by_file_and_key(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text), Schema)


def test_every_problem_is_listed_at_once(write):
    with pytest.raises(ConfigError) as error:
        load_config(write("optimizer = dict(type='sdg', lr='fast')\nnam = 1\n"), Schema)
    assert len(str(error.value).splitlines()) == 3


def test_missing_file_names_the_nearest(write):
    path = write(GOOD)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*experiment\.py"):
        load_config(path.with_name("experimnt.py"), Schema)


def test_dump_reads_back_equal(write):
    config = load_config(write(GOOD), Schema)
    assert load_config(write(dump_config(config), "resolved.py"), Schema) == config


def test_changed_values_by_key():
    old = {"a": {"b": 1, "c": (2, 3)}, "d": None}
    assert changed_values(old, {"a": {"b": 1, "c": (2, 3)}, "d": None}) == []
    assert changed_values(old, {"a": {"b": 4, "c": (2, 3)}, "d": {"e": 1}}) == ["a.b: 1 -> 4", "d: None -> {'e': 1}"]


def test_blame_names_file_and_section():
    with pytest.raises(ConfigError, match="x.py: teacher: no such tap"), config_errors("x.py", "teacher"):
        raise ValueError("no such tap")
