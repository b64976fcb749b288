"""Writes docs/config.md: every key of a config, with its type, default, bounds and meaning.

The keys are those of configs/schema.py, and the comment at a key is its meaning. The keys of a dataset or method are
the arguments of its constructor, and the Args section of the docstring has their meaning.
"""

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.schema import DistillSection, Experiment, SeveralMethods
from models import BACKBONES, HEADS, NORMALIZATIONS
from utils.config import Component, component_section, models_in
from utils.files import write_atomically

OUT = Path(__file__).resolve().parents[1] / "docs/config.md"
INTRO = """# Every key of a config

Written by `python scripts/document_config.py` from `configs/schema.py` and the docstrings of the components.

A config is a Python file. `_base_ = ["other.py"]` inherits from other files, `dict(_delete_=True, ...)` replaces an
inherited section instead of changing it, and `--cfg-options section.key=value` overrides a value on the command line.
A list may be written for a tuple. An unknown key is an error. Every int is below 2^63."""
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
HEADER = "| key | type | default | meaning |\n|---|---|---|---|"


def key_comments(section: type[BaseModel]) -> dict[str, str]:
    """The comment at each key of a section, above the key or on its line."""
    found: dict[str, str] = {}
    for model in reversed(section.__mro__):
        if not issubclass(model, BaseModel) or model.__module__ != Experiment.__module__:
            continue
        above: list[str] = []
        for line in inspect.getsource(model).splitlines():
            if comment := re.match(r"    # (.*)", line):
                above.append(comment[1])
                continue
            if key := re.match(r"    (\w+): [^#]*(?:# (.*))?$", line):
                found[key[1]] = " ".join(above) or key[2]
            above = []
    return found


def argument_docs(component: Any) -> dict[str, str]:
    """The meaning of each argument, from the Args section of the docstring, or else from that of a base class."""
    found: dict[str, str] = {}
    for owner in reversed(getattr(component, "__mro__", [component])):
        text = inspect.cleandoc(owner.__doc__ or "") + "\n"
        section = re.search(r"^Args:\n((?: .*\n)*)", text, re.M)
        entries = re.findall(r"^    ([\w, ]+): (.*\n(?:     .*\n)*)", section[1] if section else "", re.M)
        found |= {name: " ".join(meaning.split()) for names, meaning in entries for name in names.split(", ")}
    return found


def type_text(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """An annotation in words, with its bounds.

    >>> type_text(tuple[Annotated[float, Field(gt=0)], ...] | None)
    'tuple of float > 0, or None'
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [*annotation.__metadata__, *bounds])
    if origin in (typing.Union, types.UnionType):
        *others, last = [type_text(each, bounds) for each in arguments]
        return f"{', '.join(others)}{',' if ' ' in others[-1] else ''} or {last}"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is not ...:
        return f"({', '.join(map(type_text, arguments))})"
    if origin in (tuple, Sequence):
        return f"tuple of {type_text(arguments[0])}"
    if origin in (dict, Mapping):
        return f"dict of {' to '.join(map(type_text, arguments))}"
    if annotation is types.NoneType:
        return "None"
    if issubclass(annotation, BaseModel):
        return "section"
    flat = [each for bound in bounds for each in (bound.metadata if isinstance(bound, FieldInfo) else [bound])]
    texts = [f"{sign} {getattr(bound, key)}" for bound in flat for key, sign in SIGNS.items() if hasattr(bound, key)]
    return f"{annotation.__name__} {' and '.join(text for text in texts if text != f'< {2**63}')}".strip()


def table(section: type[BaseModel], keys: Iterable[str], meanings: Mapping[str, str], owner: str) -> str:
    """One line for each key.

    Raises:
        ValueError: a key has no meaning.
    """
    rows = [HEADER]
    for key in keys:
        field = section.model_fields[key]
        if not meanings.get(key):
            raise ValueError(f"{owner} says nothing about {key!r}: give it a comment, or an entry in Args")
        default = "required" if field.is_required() else f"`{field.default!r}`"
        if isinstance(field.default, BaseModel):
            default = "its defaults"
        cells = f"`{key}`", type_text(field.annotation, field.metadata), default, meanings[key].replace("``", "`")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def component_tables(name: str, base: type[Component]) -> Iterator[str]:
    """For each component of a section its summary and its own keys."""
    for type_, component in ((each, base.registry[each]) for each in base.registry):
        section = component_section(base, type_, component)
        own = [key for key in section.model_fields if key not in base.model_fields]
        summary = " ".join(inspect.cleandoc(component.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
        yield f'### {name} with type="{type_}"\n\n{summary}'
        yield table(section, own, argument_docs(component), component.__qualname__) if own else "No further keys."


def section_text(name: str, section: type[BaseModel]) -> Iterator[str]:
    yield f"## {name}\n\n{inspect.cleandoc(section.__doc__).replace('``', '`')}"
    yield table(section, section.model_fields, key_comments(section), section.__name__)
    if issubclass(section, DistillSection):
        yield "Or several methods at once:"
        yield table(SeveralMethods, SeveralMethods.model_fields, key_comments(SeveralMethods), "SeveralMethods")
    if issubclass(section, Component):
        yield from component_tables(name, section)


def document() -> str:
    """The text of ``docs/config.md``."""
    sections = {
        f"{name}.TERM" if name == "curriculum" else name: models_in(field.annotation)[0]
        for name, field in Experiment.model_fields.items()
        if models_in(field.annotation)
    }
    parts = [INTRO, "## Top level", table(Experiment, Experiment.model_fields, key_comments(Experiment), "Experiment")]
    for name, section in sections.items():
        parts += section_text(name, section)
        if name == "student":
            parts += [
                f"Backbones: {', '.join(BACKBONES)}, and those of timm.",
                f"Heads: {', '.join(HEADS)}.",
                f"Normalizations: {', '.join(NORMALIZATIONS)}.",
            ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_atomically(OUT, document().encode())
    print(f"{OUT} written")
