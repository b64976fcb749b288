"""The tensors of one file: safetensors or torch, with one or several sets of weights under any wrapping."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.weights.conversion import State
from models.weights.layouts import find_layout
from models.weights.metadata import check_metadata

# Keys under which checkpoints keep their weights; 'student' is ours.
WRAPPERS = ("student", "state_dict", "model", "module")

COUNTER = "n_averaged"  # a tensor beside the weights of torch.optim.swa_utils.AveragedModel


class Weights(NamedTuple):
    """Tensors under the names that their source gives them.

    ``metadata`` has some of ``network`` (arguments of ``build_model``), ``normalization`` (the fields of
    ``Normalization``), ``taps``, ``class_names`` and others, or none.
    """

    source: str  # the file, folder, hub or package
    tensors: State  # on the CPU
    metadata: dict[str, Any]
    path: Path | None  # the file with the tensors; None where timm downloaded them
    notes: tuple[str, ...] = ()  # what a user should know of how they were read, for reports


def strip_prefix(state: State) -> tuple[State, str]:
    """Removes what all names begin with, such as ``model.``, until a layout is recognised; and what was removed.

    ``COUNTER`` is left out.
    """
    state, removed = {key: tensor for key, tensor in state.items() if key != COUNTER}, ""
    while find_layout(state) is None and len(state) > 1:
        first = {key.partition(".")[0] for key in state if "." in key}
        if len(first) != 1 or not all("." in key for key in state):
            break
        prefix = f"{first.pop()}."
        state, removed = {key.removeprefix(prefix): tensor for key, tensor in state.items()}, removed + prefix
    return state, removed


def read_tensors(path: Path, trust: bool = False) -> Weights:
    """The tensors of a file under their own names, and the metadata of a file of ours; values are not checked.

    A file may hold several sets of tensors, such as ``model`` and ``model_ema``. The first of ``WRAPPERS`` is read, and
    ``notes`` names the others that have the same tensors. ``FILE#model_ema`` or ``FILE#ema`` reads another set;
    ``FILE#student`` also reads the tensors whose names begin with ``student.``.

    Args:
        path: torch file or ``.safetensors``, with ``#NAME`` or without.
        trust: let a torch file execute the code in it; only for ``scripts/convert_checkpoint.py --trust``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, would execute code, has no weights, or no set of the name asked for.
    """
    source, asked = str(path), ""
    if "#" in path.name and not path.is_file():
        name, _, asked = source.rpartition("#")
        path = Path(name)
    if not path.is_file():
        hub = f"; one of Hugging Face's hub is named hf:{path}" if re.fullmatch(r"[\w-]+/[\w-]+", str(path)) else ""
        raise FileNotFoundError(f"weights file {path} does not exist{hub}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                metadata = _decode(file.metadata() or {})
        else:
            content = torch.load(path, map_location="cpu", weights_only=not trust)
            metadata = content.get("about", {}) if isinstance(content, Mapping) else {}
    except Exception as error:  # a damaged file raises one of many types
        raise ValueError(f"{path} {_why_unreadable(path, error)}") from error
    check_metadata(metadata, str(path))

    sets = _find_sets(content)
    name = _choose(sets, asked, path)
    if name is not None:
        others = [] if asked else [other for other in sets if _are_alike(sets[name], sets[other]) and other != name]
        note = f"the weights under {name!r} of {path.name}" if asked or others else ""
        if others:
            note += f" (it also holds {', '.join(others)}: choose one with {path}#{others[0]})"
        return Weights(source, sets[name], metadata, path, (note,) if note else ())
    keys = ", ".join([str(key) for key in content][:10]) if isinstance(content, Mapping) else ""
    found = f"keys {keys or '(none)'}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    choice = f"; or choose one of its sets of weights, such as {path}#{next(iter(sets))}" if sets else ""
    raise ValueError(
        f"{path} holds {found}; expected tensors by name, at the top or under one of the keys "
        f"{', '.join(WRAPPERS)}{choice}"
    )


def _find_sets(content: Any) -> dict[str, State]:
    """All sets of tensors in a file by the keys that they are under, joined by dots; '' at the top."""
    if isinstance(content, nn.Module):  # a pickled network, which only ``trust`` can load
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return {"": {str(key): tensor for key, tensor in content.items()}}
    inner = {key: _find_sets(value) for key, value in content.items() if isinstance(key, str)}
    return {f"{key}.{name}".rstrip("."): state for key, found in inner.items() for name, state in found.items()}


def _choose(sets: dict[str, State], asked: str, path: Path) -> str | None:
    """The name of the set to read, which is added to ``sets`` where it is a part of another; None: there is none.

    Raises:
        ValueError: none or several have the name asked for.
    """
    if not asked:
        usual = [name for name in sets if set(name.split(".")) <= {"", *WRAPPERS}]
        return next((name for first in ("", *WRAPPERS) for name in usual if name.partition(".")[0] == first), None)
    for found in (
        [name for name in sets if name == asked],
        [name for name in sets if asked in name.split(".")],
        [name for name in sets if asked in re.split(r"[._]", name)],
    ):
        if len(found) == 1:
            return found[0]
    for state in list(sets.values()):
        if part := {key: tensor for key, tensor in state.items() if key.startswith(f"{asked}.")}:
            sets[asked] = part
            return asked
    named = ", ".join(filter(None, sets)) or "none"
    raise ValueError(f"{path} has no set of weights, or several, of the name {asked!r}; its sets are: {named}")


def _are_alike(one: State, other: State) -> bool:
    """Whether most tensors of one set are also in the other, whatever prefix their names have."""
    one, other = (strip_prefix(state)[0].keys() for state in (one, other))
    return len(one & other) > len(one) / 2


def _decode(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The JSON values of a ``.safetensors`` file of ours; {} where another program wrote the metadata."""
    if not {"network", "normalization"} & metadata.keys():
        return {}
    try:
        return {name: json.loads(value) for name, value in metadata.items()}
    except ValueError:
        return {}


def _why_unreadable(path: Path, error: Exception) -> str:
    """The end of a sentence that begins with the file's name."""
    start = path.read_bytes()[:64].lstrip()
    if start.startswith(b"<"):
        return "is a web page, not weights: its link is dead, or needs a login"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run git lfs pull where it came from"
    reason = f"cannot be read as a checkpoint ({first_line(error)}): it is damaged, or is no checkpoint"
    if path.suffix == ".safetensors":
        return reason
    return (
        f"{reason}, or it contains more than tensors, which is refused because reading it would execute code. If you "
        f"trust its source: python scripts/convert_checkpoint.py {path} OUT.safetensors --trust, then use "
        f"OUT.safetensors"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error; of one that PyTorch wraps into advice, of the error inside."""
    if isinstance(error, pickle.UnpicklingError) and error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
