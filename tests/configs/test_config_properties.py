"""Any valid config, written down, reads back equal: every value of every shipped config changed within the schema."""

import math
from copy import deepcopy
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs.schema import Experiment
from tests.configs.test_configs import METHOD_FOLDER, SHIPPED, load
from utils.config import ConfigError, changed_values, dump_config, load_config, load_section, validate

METHOD_FILES = sorted(METHOD_FOLDER.glob("*.py"))
# Far from what a config holds, but strings all the same: long ones are wrapped, braces are mmengine's templates.
WORDS = (
    "a b", "", "it's \"quoted\"", "x" * 300, "a/b/" * 60, "back\\slash", "new\nline\ttab", "höhe/図", "None", "1",
    "{x}", "{{ fileDirname }}/data", "{{ $HOME:x }}", "{{_base_.student}}", "\\{{ fileBasename }}", "{{{{{",
)  # fmt: skip
texts = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@cache
def shipped(path):
    return load(path)


@cache
def method(path):
    return load_section(path, "distill")


def leaves(value, place=()):
    """The place of each value that is not a dict."""
    if isinstance(value, dict):
        return [leaf for name, entry in value.items() for leaf in leaves(entry, (*place, name))]
    return [place]


def another(value):
    """Values of the kind of ``value``; of None, any."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(0, 10**12) | st.integers(1, 64)
    if isinstance(value, float):
        return st.floats(0, 1) | st.floats()
    if isinstance(value, str):
        return texts
    if isinstance(value, tuple):
        return st.tuples(*map(another, value)) | st.lists(another(value[0]) if value else texts, max_size=40).map(tuple)
    return st.sampled_from([None, 1, 0.5, True, (1, 2), (0.5, 0.9)]) | texts


@st.composite
def configs(draw):
    values = shipped(draw(st.sampled_from(SHIPPED))).model_dump()
    if values["distill"] is not None:
        section = st.sampled_from(METHOD_FILES).map(method).map(deepcopy)
        if draw(st.booleans()):
            values["distill"] = draw(section)
        elif draw(st.booleans()):
            values["distill"] = {
                "methods": draw(st.lists(section, min_size=1, max_size=3, unique_by=lambda s: s["type"]))
            }
    schedules = st.fixed_dictionaries(
        {"type": st.sampled_from(["linear", "cosine", "step"]), "iters": st.integers(1, 10**6)}
    )
    values["curriculum"] = draw(st.dictionaries(texts, schedules, max_size=2))
    places = [place for place in leaves(values) if place != ("custom_imports",)]  # these are imported
    for place in draw(st.lists(st.sampled_from(places), max_size=3, unique=True)):
        section = values
        for name in place[:-1]:
            section = section[name]
        section[place[-1]] = draw(another(section[place[-1]]))
    try:
        return validate(values, Experiment, "x.py")
    except ConfigError:
        assume(False)


@settings(max_examples=settings.default.max_examples // 2)
@given(config=configs())
def test_a_written_config_reads_back_equal(config, tmp_path):
    values = config.model_dump()
    assert changed_values(values, values) == []
    (tmp_path / "config.py").write_bytes(dump_config(config).encode())
    again = load_config(tmp_path / "config.py", Experiment)
    assert again == config
    assert changed_values(values, again.model_dump()) == []
    assert dump_config(again) == dump_config(config)


@pytest.mark.parametrize("word", WORDS)
def test_any_string_reads_back_equal(word, tmp_path):
    config = shipped(SHIPPED[0])
    config = config.model_copy(update={"protocol": word, "data": config.data.model_copy(update={"root": word})})
    (tmp_path / "config.py").write_bytes(dump_config(config).encode())
    assert load_config(tmp_path / "config.py", Experiment) == config


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_none_are_refused(number):
    """Neither can be written down: inf and nan are no Python literals."""
    values = shipped(SHIPPED[0]).model_dump()
    values["optimizer"]["lr"] = values["data"]["cat_max_ratio"] = number
    with pytest.raises(ConfigError, match=r"(?s)data.cat_max_ratio: .*finite.*optimizer.lr: .*finite"):
        validate(values, Experiment, "x.py")


@settings(max_examples=settings.default.max_examples // 2)
@given(configs(), configs())
def test_changes_are_empty_where_configs_are_equal_and_nowhere_else(one, other):
    assert (changed_values(one.model_dump(), other.model_dump()) == []) == (one == other)
