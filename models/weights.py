"""Reads a weights file of any known layout into a network, wholly or not at all."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from models.base import SegModel

State = dict[str, Tensor]


class Layout(NamedTuple):
    """How one family of files names its tensors.

    Attributes:
        name: for the report.
        holds: ``'all'`` of a network, or its ``'backbone'``.
        markers: keys whose joint presence tells the layout; the first that fits in ``LAYOUTS`` wins.
        convert: the file's tensors -> ours, by name (and shape, where they differ).
        skip: prefixes, in the file, of tensors that our networks have no place for.
    """

    name: str
    holds: str
    markers: frozenset[str]
    convert: Callable[[State], State]
    skip: tuple[str, ...] = ()


def _below(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


# The classifier of an ImageNet encoder (fc, head) has no place in a segmentation network.
LAYOUTS = (
    Layout("hmkd", "all", frozenset({"head.classifier.weight"}), dict),
    Layout(
        "ImageNet ResNet (torchvision, timm)",
        "backbone",
        frozenset({"bn1.weight", "layer1.0.conv1.weight"}),
        _below("backbone.net."),
        skip=("fc.",),
    ),
    Layout(
        "ImageNet MiT (NVlabs)",
        "backbone",
        frozenset({"patch_embed1.proj.weight", "norm4.weight"}),
        _below("backbone."),
        skip=("head.",),
    ),
)
# Where checkpoints keep their weights; 'student' is ours.
WRAPPERS = ("student", "state_dict", "model", "module")


class LoadReport(NamedTuple):
    """What was loaded.

    Attributes:
        path: the file.
        layout: name of its layout.
        part: ``'all'`` or ``'backbone'``.
        loaded: tensors copied into the network.
        skipped: keys of the file left out by a documented exception.
        about: what a file of ours says beside its tensors (``class_names``, ``normalization``, ``taps``, ...).
    """

    path: Path
    layout: str
    part: str
    loaded: int
    skipped: tuple[str, ...]
    about: Mapping[str, Any]

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} skipped ({_list(self.skipped)})" if self.skipped else ""
        where = "network" if self.part == "all" else "backbone"
        return f"{self.path}: {self.layout} layout, {self.loaded} tensors loaded into the {where}{skipped}"


def load_weights(model: SegModel, path: str | Path, part: str = "all") -> LoadReport:
    """Loads a file into a network, strictly; on any error the network is as it was.

    Left out, and named in the report: the ImageNet classifier of an encoder; an auxiliary head that the network does
    not have; with ``part='backbone'``, the heads in a whole network's file. ``num_batches_tracked`` may be absent.

    Args:
        model: the network.
        path: torch file (read with ``weights_only=True``) or ``.safetensors``.
        part: ``'all'``, or ``'backbone'`` to leave the network's heads alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no known layout, is an encoder where a network is asked for, has another
            number of classes, lacks, adds or reshapes a tensor, or says that it was trained with another normalisation
            or other strides.
    """
    if part not in ("all", "backbone"):
        raise ValueError(f"part is {part!r}; expected 'all' or 'backbone'")
    path = Path(path)
    state, about = read_weights(path)
    layout = _detect(state, path)
    if part == "all" and layout.holds == "backbone":
        raise ValueError(
            f"{path} is an ImageNet encoder ({layout.name}), not a segmentation model: its heads would stay random. "
            f"Give a segmentation checkpoint, or load it as the backbone alone"
        )
    skipped = [key for key in state if key.startswith(layout.skip)]
    state = layout.convert({key: tensor for key, tensor in state.items() if key not in skipped})

    wanted = model.state_dict()
    if part == "backbone":
        wanted = {key: tensor for key, tensor in wanted.items() if key.startswith("backbone.")}
        extra = [key for key in state if not key.startswith("backbone.")]
    else:
        _check_classes(model, state, path)
        _check_settings(model, about, path)
        extra = [key for key in state if key.startswith("aux_head.") and model.aux_head is None]
    state = {key: tensor for key, tensor in state.items() if key not in extra}

    _check_strict(wanted, state, path)
    model.load_state_dict(state, strict=False)  # strictness, with its exceptions, was checked above
    return LoadReport(path, layout.name, part, len(state), (*skipped, *extra), about)


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of a file, out of whatever wrapper they are kept in, and what a file of ours says beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                metadata = file.metadata() or {}
                about = {name: json.loads(value) for name, value in metadata.items()} if "network" in metadata else {}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            about = content.get("about", {}) if isinstance(content, Mapping) else {}
    except Exception as error:  # a damaged file can fail in any of a dozen ways, all of which mean the same
        raise ValueError(f"{path} cannot be read as a checkpoint (damaged, or not one): {error}") from error

    inner = content
    while isinstance(inner, Mapping):
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return {key.removeprefix("module."): tensor for key, tensor in inner.items()}, about  # 'module.' is DDP's
        inner = next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), Mapping)), None)
    found = f"keys {_list(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ValueError(f"{path} holds {found}; expected tensors by name, bare or under one of {', '.join(WRAPPERS)}")


def _detect(state: State, path: Path) -> Layout:
    for layout in LAYOUTS:
        if layout.markers <= state.keys():
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"{path} has no known layout: its keys are {_list(state)}; known are {known}")


def _check_classes(model: SegModel, state: State, path: Path) -> None:
    found = state["head.classifier.weight"].shape[0]
    if found != model.num_classes:
        raise ValueError(f"{path} was trained on {found} classes; the network has {model.num_classes}")


def _check_settings(model: SegModel, about: Mapping[str, Any], path: Path) -> None:
    """Settings that no tensor shows, and that change what the tensors compute."""
    ours = {
        "normalization": model.normalization._asdict(),
        "taps": {name: tap._asdict() for name, tap in model.tap_info.items()},
    }
    for name, value in ours.items():
        if name in about and _lists(about[name]) != _lists(value):
            different = [key for key in value if _lists(about[name]).get(key) != _lists(value)[key]]
            raise ValueError(
                f"{path} was trained with {name} {different[0]} = {_lists(about[name]).get(different[0])}; the network "
                f"has {_lists(value)[different[0]]}: correct its backbone, head, output_stride or normalization"
            )


def _lists(value: Any) -> Any:
    """Tuples as lists, as JSON gives them."""
    if isinstance(value, Mapping):
        return {name: _lists(entry) for name, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def _check_strict(wanted: State, state: State, path: Path) -> None:
    def shape(tensor: Tensor) -> str:
        return "x".join(map(str, tensor.shape)) or "scalar"

    problems = {
        "missing in the file": [
            f"{key} ({shape(tensor)})"
            for key, tensor in wanted.items()
            if key not in state and not key.endswith(".num_batches_tracked")
        ],
        "unknown to the network": [f"{key} ({shape(tensor)})" for key, tensor in state.items() if key not in wanted],
        "of another shape": [
            f"{key} ({shape(tensor)} in the file, {shape(wanted[key])} in the network)"
            for key, tensor in state.items()
            if key in wanted and tensor.shape != wanted[key].shape
        ],
    }
    lines = [f"  {len(keys)} {kind}: {_list(keys)}" for kind, keys in problems.items() if keys]
    if lines:
        raise ValueError("\n".join([f"{path} does not fit the network, which was left as it was", *lines]))


def _list(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
