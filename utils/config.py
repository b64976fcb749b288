"""Reads a Python config file, merges ``--cfg-options`` into it and validates the whole against a schema.

mmengine's ``Config`` does the reading (``_base_``, ``_delete_``); pydantic does the validation. Every error
names the file, the key and the nearest valid choice.
"""

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pprint import pformat
from typing import Any, TypeVar, get_args

from mmengine.config import Config
from pydantic import BaseModel, ValidationError

from utils.names import did_you_mean

Schema = TypeVar("Schema", bound=BaseModel)


class ConfigError(ValueError):
    """The configuration is wrong; the message says where and how to mend it."""


@contextmanager
def config_errors(path: str | Path, section: str) -> Iterator[None]:
    """Turns an error of a component that a config asked for into a ConfigError that names file and section."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: {section}: {error}") from error


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``['a.b=1', "c=(2, 3)", 'd=text']`` -> values. Python literals, or else plain strings; nothing is evaluated.

    Raises:
        ConfigError: if an option has no ``=``, or is nested beyond what Python's parser takes.
    """
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--cfg-options: {option!r} is not of the form section.key=value")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
        except (MemoryError, RecursionError) as error:
            raise ConfigError(f"--cfg-options: {key}: {text[:40]!r}... is nested too deeply to be a value") from error
    return values


def load_config(path: str | Path, schema: type[Schema], options: Sequence[str] = ()) -> Schema:
    """Reads ``path`` with its ``_base_`` files, applies ``options``, returns a validated ``schema`` instance.

    Raises:
        FileNotFoundError: if ``path`` does not exist; names the nearest config in its folder.
        ConfigError: on a file that cannot be read, or any unknown key, wrong type or value; lists all of them.
    """
    config = _read(Path(path))
    try:
        config.merge_from_dict(parse_options(options))
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{path}: cannot apply --cfg-options {' '.join(options)}: {error}") from error
    return validate(config.to_dict(), schema, path)


def load_section(path: str | Path, section: str) -> dict[str, Any]:
    """One section of a config that is part of one only, not validated (``configs/_base_/methods/kd.py``: 'distill').

    Raises:
        FileNotFoundError: as ``load_config``.
        ConfigError: on a file that cannot be read, or has no such section.
    """
    values = _read(Path(path)).to_dict()
    if not isinstance(values.get(section), dict):
        raise ConfigError(f"{path}: has no {section} = dict(...); it has {', '.join(values) or 'nothing'}")
    return values[section]


def _read(path: Path) -> Config:
    if not path.is_file():
        near = did_you_mean(path.name, [each.name for each in path.parent.glob("*.py")])
        raise FileNotFoundError(f"config {path} does not exist; in {path.parent}: {near}")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a Python program: anything may go wrong in it
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def validate(values: dict[str, Any], schema: type[Schema], source: str | Path) -> Schema:
    """``values`` as a ``schema`` instance.

    Raises:
        ConfigError: lists every problem, one a line, as ``source: section.key: what was found, what is expected``.
    """
    try:
        return schema.model_validate(_tuples(values))
    except ValidationError as error:
        problems = [f"{source}: {_explain(problem, schema)}" for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def _tuples(value: Any) -> Any:
    """Lists become tuples: a config may write either."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def dump_config(config: BaseModel) -> str:
    """The resolved config as a Python file that ``load_config`` reads back to an equal config."""
    sections = config.model_dump().items()
    text = "\n".join(f"{name} = {pformat(value, width=110, sort_dicts=False)}" for name, value in sections) + "\n"
    return text.replace("{{", r"{\x7b")  # only a string holds two braces; mmengine would fill them in as a template


def changed_values(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two dumped configs differ, as lines ``section.key: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        prefix = f"{key}." if key else ""
        return [line for name in names for line in changed_values(old.get(name), new.get(name), f"{prefix}{name}")]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as ``A``, ``A | None`` or ``Annotated[Union[A, B], ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tags(model: type[BaseModel]) -> tuple:
    """The values of ``type`` that select this model in a discriminated union."""
    return get_args(model.model_fields["type"].annotation) if "type" in model.model_fields else ()


def _explain(problem: dict[str, Any], schema: type[BaseModel]) -> str:
    """One line for one pydantic error: dotted key, what was found, what is expected, the nearest choice."""
    keys, models, owners = [], [schema], [schema]
    for part in problem["loc"]:
        if str(part).startswith("<"):
            continue  # the tag of a union that a function tells apart: not a key
        tagged = [model for model in models if part in _tags(model)]
        if tagged:
            models = tagged  # the tag of a discriminated union is a value, not a key: it only narrows the models
            continue
        keys.append(str(part))
        if isinstance(part, int):
            continue  # a place in a list: what it may hold is known already
        owners = models
        models = [
            nested
            for model in models
            if part in model.model_fields
            for nested in _models(model.model_fields[part].annotation)
        ]
    key, last = ".".join(keys), keys[-1] if keys else ""
    if problem["type"] == "extra_forbidden":
        choices = [name for model in owners for name in model.model_fields]
        return f"{key}: unknown key; {did_you_mean(last, choices)}"
    if problem["type"] == "missing":
        return f"{key}: missing; it has no default"
    if problem["type"] == "union_tag_invalid":
        choices = [choice.strip(" '") for choice in problem["ctx"]["expected_tags"].split(",")]
        return f"{key}.type: unknown type {problem['ctx']['tag']!r}; {did_you_mean(problem['ctx']['tag'], choices)}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.type: missing; it has no default"
    if problem["type"] == "literal_error":
        choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{key}: {problem['input']!r} is not valid; {did_you_mean(str(problem['input']), choices)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}; found {problem['input']!r} ({type(problem['input']).__name__})"
