"""Reads a Python config file, applies ``--cfg-options``, imports its ``custom_imports`` and validates the values.

mmengine's ``Config`` reads the file (``_base_``, ``_delete_``) and pydantic validates it. Every error names the file,
the key and the nearest valid choice. ``Section`` and ``Component`` are what a schema is made of.
"""

import ast
import inspect
import os
import re
import sys
from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from pprint import pformat
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from mmengine.config import Config
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PydanticUserError,
    ValidationError,
    create_model,
    model_validator,
)

from utils.names import Registry, did_you_mean, unknown_name

Schema = TypeVar("Schema", bound=BaseModel)


class ConfigError(ValueError):
    """The configuration is wrong; the message says where, and how to fix it."""


@contextmanager
def config_errors(path: str | Path, section: str) -> Iterator[None]:
    """Turns an error of a component into a ConfigError that names the config file and the section."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: {section}: {error}") from error


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``['a.b=1', "c=(2, 3)", 'd=text']`` -> values. Each is a Python literal, or else a string; no code runs.

    Raises:
        ConfigError: an option has no ``=``, or is nested too deeply for Python's parser.
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


def load_config(
    path: str | Path, schema: type[Schema], options: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Schema:
    """Reads ``path`` with its ``_base_`` files, applies ``options`` and validates the result against ``schema``.

    ``values`` are used instead of the file's content, where that is no config: those of JSON.

    Raises:
        FileNotFoundError: ``path`` does not exist; names the nearest config in its folder.
        ConfigError: the file cannot be read, one of its ``custom_imports`` cannot be imported, or keys, types or
            values are wrong; lists all of these.
    """
    config = _read(Path(path)) if values is None else Config(_tables(_from_json(values)))
    try:
        config.merge_from_dict(_tables(parse_options(options)))
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{path}: cannot apply --cfg-options {' '.join(options)}: {error}") from error
    values = config.to_dict()
    import_modules(values.get("custom_imports"), path)
    return validate(values, schema, path)


def load_section(path: str | Path, section: str) -> dict[str, Any]:
    """One section of a file that need not be a whole config, not validated (``configs/_base_/methods/kd.py``).

    Raises:
        FileNotFoundError: as ``load_config``.
        ConfigError: the file cannot be read, or has no such section.
    """
    values = _read(Path(path)).to_dict()
    if not isinstance(values.get(section), dict):
        raise ConfigError(f"{path}: has no {section} = dict(...); it has {', '.join(values) or 'nothing'}")
    return values[section]


class _WorkingDirectory:
    """Finds modules in the working directory, after all places where Python looks."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [os.getcwd()], target) if path is None else None


def import_modules(names: Any, source: str | Path) -> None:
    """Imports the modules that a config lists in ``custom_imports``, which register their components.

    They are looked for where Python looks for modules, and then in the working directory. The package of a custom
    dataset must be on PYTHONPATH where worker processes are spawned instead of forked (macOS, Windows).

    Raises:
        ConfigError: a module cannot be imported, or registers a name that is taken.
    """
    sys.meta_path.append(_WorkingDirectory)
    try:
        for name in names if isinstance(names, list | tuple) else ():  # the schema refuses anything else
            import_module(name)
    except Exception as error:  # a module is a program: anything may go wrong in it
        raise ConfigError(
            f"{source}: custom_imports: cannot import {name!r}: {type(error).__name__}: {error} (modules are looked "
            f"for on PYTHONPATH and in the working directory, {os.getcwd()})"
        ) from error
    finally:
        sys.meta_path.remove(_WorkingDirectory)


def _read(path: Path) -> Config:
    if not path.is_file():
        near = did_you_mean(path.name, [each.name for each in path.parent.glob("*.py")])
        raise FileNotFoundError(f"config {path} does not exist; in {path.parent}: {near}")
    try:
        return Config.fromfile(path, import_custom_modules=False)  # import_modules does it
    except Exception as error:  # a config is a Python program: anything may go wrong in it
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def validate(values: dict[str, Any], schema: type[Schema], source: str | Path) -> Schema:
    """Validates ``values``.

    Raises:
        ConfigError: lists every problem, one a line, as ``source: section.key: what was found, what is expected``.
    """
    try:
        return schema.model_validate(_tuples(values))
    except ValidationError as error:
        problems = [f"{source}: {_explain(problem, schema, values)}" for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def _from_json(value: Any) -> Any:
    """Keys of tables, which are texts in JSON, become numbers (``'7'``) and colours (``'0,0,255'``) again."""
    if not isinstance(value, Mapping):
        return value
    return {
        ast.literal_eval(name) if re.fullmatch(r"\d+(,\d+)*", str(name)) else name: _from_json(entry)
        for name, entry in value.items()
    }


def _tables(value: Any) -> Any:
    """Dicts whose keys are no names, such as id tables, become a type that mmengine does not merge but replaces."""
    if not isinstance(value, dict):
        return value
    entries = {name: _tables(entry) for name, entry in value.items()}
    return entries if all(isinstance(name, str) for name in entries) else UserDict(entries)


def _tuples(value: Any) -> Any:
    """Lists become tuples: a config may write either. Tables become dicts again."""
    if isinstance(value, Mapping):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def dump_config(config: BaseModel) -> str:
    """The resolved config as a Python file that ``load_config`` reads back to an equal config."""
    sections = config.model_dump().items()
    text = "\n".join(f"{name} = {pformat(value, width=110, sort_dicts=False)}" for name, value in sections) + "\n"
    return text.replace("{{", r"{\x7b")  # only a string holds two braces; mmengine would fill them in as a template


def changed_values(old: Any, new: Any, key: str = "") -> list[str]:
    """The differences of two dumped configs, as lines ``section.key: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        prefix = f"{key}." if key else ""
        return [line for name in names for line in changed_values(old.get(name), new.get(name), f"{prefix}{name}")]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as ``A``, ``A | None`` or ``tuple[A, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def _section(schema: type[BaseModel], values: Any, place: Sequence[str | int]) -> type[BaseModel]:
    """The model of the section at ``place`` in ``values``.

    A model whose keys depend on the values has a method ``variant(values)``, which gives the model to use.
    """
    model = schema
    for part in place:
        values = values[part]
        if part in model.model_fields:
            model = next(iter(models_in(model.model_fields[part].annotation)), model)
        if isinstance(values, dict) and hasattr(model, "variant"):
            model = model.variant(values)
    return model


def _explain(problem: dict[str, Any], schema: type[BaseModel], values: dict[str, Any]) -> str:
    """One line for one pydantic error: dotted key, what was found, what is expected, the nearest choice."""
    *place, last = problem["loc"] or [""]
    parts = [str(part) for part in problem["loc"] if "[" not in str(part)]  # such a part names a choice of a union
    key, message, found = ".".join(parts), problem["msg"], problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {did_you_mean(last, _section(schema, values, place).model_fields)}"
    if problem["type"] == "missing":
        return f"{key}: missing; it has no default"
    if problem["type"] == "literal_error":
        choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{key}: {found!r} is not valid; {did_you_mean(str(found), choices)}"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{key}: {message}" if key else message
    line = f"{key}: {message}; found {found!r} ({type(found).__name__})"
    if problem["type"] == "string_type" and isinstance(found, int | float) and isinstance(last, str):
        return f"""{line}: write it in quotes, after --cfg-options in two pairs: {key}='"{found}"'"""
    return line


def one_of(choices: Collection[str], kind: str) -> AfterValidator:
    """Allows only the strings in ``choices``; the error names the nearest one."""

    def check(name: str) -> str:
        if name not in choices:
            raise unknown_name(kind, name, choices)
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """Strict types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Component(Section):
    """A section for one registered component. ``type`` names it; the other keys are its constructor's arguments.

    The registry is read when a config is validated, so modules may register components until then.
    """

    registry: ClassVar[Registry]
    passed: ClassVar[frozenset[str]]  # arguments that the code passes, which are no keys

    type: str

    @classmethod
    def variant(cls, values: Any) -> type[Section]:
        """The section with the keys of the component that ``values`` names."""
        choice = Annotated[str, one_of(cls.registry, cls.registry.kind)]
        name = create_model(cls.__name__, type=(choice, ...), __config__=ConfigDict(strict=True)).model_validate(values)
        return component_section(cls, name.type, cls.registry[name.type])

    @model_validator(mode="wrap")
    @classmethod
    def _validate_variant(cls, values: Any, handler: Callable) -> Section:
        is_variant = cls.model_fields["type"].annotation is not str
        return handler(values) if is_variant else cls.variant(values).model_validate(values)


@cache
def component_section(base: type[Component], name: str, component: Callable) -> type[Component]:
    """``base`` and the arguments of the component's constructor, with its names, annotations and defaults.

    Raises:
        ValueError: an argument has no annotation, or one that no config value can have.
    """
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    for argument in inspect.signature(component, eval_str=True).parameters.values():
        if argument.name in base.passed or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if argument.annotation is argument.empty:
            raise ValueError(f"{component.__module__}: argument {argument.name!r} of {name!r} needs a type annotation")
        fields[argument.name] = argument.annotation, ... if argument.default is argument.empty else argument.default
    try:
        return create_model(name, __base__=base, **fields)
    except PydanticUserError as error:
        raise ValueError(f"{component.__module__}: the arguments of {name!r} cannot be config keys: {error}") from error
