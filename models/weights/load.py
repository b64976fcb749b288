"""Loads weights of any known layout into a network, completely or not at all."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models.backbones import TimmBackbone, timm_names, timm_normalization
from models.base import NORMALIZATIONS, NormalizedModel, SegModel
from models.weights.conversion import Layout, State
from models.weights.encoders import take_encoder
from models.weights.layouts import LAYOUTS, OURS, find_layout
from models.weights.sources import read_weights, timm_weights
from models.weights.tensors import Weights
from utils.names import name_some

CLASSIFIERS = ("head.classifier.", "aux_head.classifier.")  # the last layers of the heads


class LoadReport(NamedTuple):
    """What was loaded."""

    source: str  # the file, folder, package or hub
    path: Path | None  # the file with the tensors; None where timm downloaded them
    layout: str
    part: str  # 'all', 'backbone' or 'body', see ``load_weights``
    loaded: int  # number of tensors copied into the network
    skipped: tuple[str, ...]  # keys of the file that were not loaded, by an exception that ``load_weights`` lists
    widened: str | None  # 'float16' or 'bfloat16' where the file has tensors in half precision
    metadata: Mapping[str, Any]  # of the source, see ``Weights``
    notes: tuple[str, ...]  # on how it was read, see ``Weights``
    sha256: str | None = None  # of the tensors where there is no file

    def digest(self) -> str | None:
        """sha256 of the file, of the weight files of a folder one after another, or of the tensors; None: not known."""
        if self.path is None:
            return self.sha256
        folder = self.path.is_dir()
        files = sorted(self.path.glob("*.safetensors")) or sorted(self.path.glob("*.bin")) if folder else [self.path]
        found = hashlib.sha256()
        for path in files:
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: found)
        return found.hexdigest()

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} skipped ({name_some(self.skipped, 10)})" if self.skipped else ""
        widened = f", {self.widened} converted to float32" if self.widened else ""
        where = {"all": "network", "backbone": "backbone", "body": "network without its classifier"}[self.part]
        loaded = f"{self.loaded} tensors loaded into the {where}{widened}{skipped}"
        return "; ".join([f"{self.source}: {self.layout} layout, {loaded}", *self.notes])


def load_weights(model: SegModel, source: str | Path, part: str = "all") -> LoadReport:
    """Loads weights into a network, strictly; an error leaves the network unchanged.

    Not loaded, but named in the report: the ImageNet classifier of an encoder; an auxiliary head that the network does
    not have; with ``part='backbone'``, the heads; with ``part='body'``, the last layer of each head. So with these two
    parts the file may have another number of classes, and with ``part='backbone'`` heads that are not known here.
    ``num_batches_tracked`` may be missing.

    Args:
        source: what :func:`models.weights.sources.read_weights` accepts (torch file, read with ``weights_only=True``,
            ``.safetensors``, folder of Hugging Face, ``hf:NAME``, ``package:NAME``), or ``'timm'`` for timm's
            ImageNet weights of the backbone.
        part: ``'all'``; ``'backbone'`` to load no heads; ``'body'`` to load nothing into the heads' last layers.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        ValueError: it cannot be read, has no known layout, is an encoder but ``part`` is not ``'backbone'``, has
            another number of classes, has missing tensors, unknown ones or ones of another shape, or was trained with
            another normalisation or other strides than the network has.
    """
    if part not in ("all", "backbone", "body"):
        raise ValueError(f"part is {part!r}; expected 'all', 'backbone' or 'body'")
    return load_read_weights(model, timm_weights(model) if source == "timm" else read_weights(source), part)


def load_read_weights(model: SegModel, weights: Weights, part: str = "all") -> LoadReport:
    """As :func:`load_weights`, for weights that :func:`models.weights.sources.read_weights` has read."""
    if not isinstance(model, SegModel):  # a network of another library, whose tensors have its own names
        check_normalization(model, weights, source_settings(weights))
        return model.load(weights, part)
    outside: tuple[str, ...] = ()
    if part == "backbone":
        tensors, outside = take_encoder(weights.tensors)
        weights = weights._replace(tensors=tensors)
    layout = _detect(model, weights)
    if part != "backbone" and layout.holds == "backbone":
        raise ValueError(
            f"{weights.source} is an ImageNet encoder ({layout.name}), not a segmentation model: the heads would stay "
            f"random. Give a segmentation checkpoint, or load only the backbone (student.pretrained)"
        )
    state, skipped = _split(layout, weights)
    state = layout.convert(state)

    wanted = model.state_dict()
    if part == "backbone":
        wanted = {key: tensor for key, tensor in wanted.items() if key.startswith("backbone.")}
        extra = [key for key in state if not key.startswith("backbone.")]
    else:
        extra = [key for key in state if key.startswith("aux_head.") and model.aux_head is None]
        if part == "body":
            wanted = {key: tensor for key, tensor in wanted.items() if not key.startswith(CLASSIFIERS)}
            extra += [key for key in state if key.startswith(CLASSIFIERS) and key not in extra]
        else:
            if (found := _classifier_rows(state)) not in (None, model.num_classes):
                raise ValueError(
                    f"{weights.source} was trained on {found} classes; the network has {model.num_classes}"
                )
    state = {key: tensor for key, tensor in state.items() if key not in extra}

    check_strict(wanted, state, weights, layout, part)
    _check_settings(model, weights, layout, part)
    model.load_state_dict(state, strict=False)  # check_strict has checked, with the exceptions
    halves = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()} & {"float16", "bfloat16"}
    return LoadReport(
        weights.source, weights.path, layout.name, part, len(state), (*skipped, *extra, *outside),
        next(iter(halves), None), weights.metadata, weights.notes,
    )  # fmt: skip


def _detect(model: SegModel, weights: Weights) -> Layout:
    layout = find_layout(weights.tensors)
    if layout is not None:
        return layout
    if isinstance(model.backbone, TimmBackbone):
        layout = _timm_layout(model.backbone)
        found = layout.convert(weights.tensors).keys() & model.state_dict().keys()
        if len(found) > len(model.backbone.state_dict()) / 2:  # check_strict names the others
            return layout
    if any(key.startswith("head.") and key in weights.tensors for key in model.state_dict()):
        return OURS  # of a head of the user, whose classifier may have another name
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(
        f"{weights.source} has no known layout: its keys are {name_some(weights.tensors, 10)}; known are {known}, "
        f"and timm's names of the backbone itself; FILE#NAME reads only the keys that begin with NAME"
    )


def _timm_layout(backbone: TimmBackbone) -> Layout:
    """The names of timm's whole network, or of its feature network, which lacks tensors of it: these are skipped."""
    names = timm_names(backbone.name, backbone.net.state_dict())
    return Layout(
        f"ImageNet {backbone.name} (timm)",
        "backbone",
        frozenset(names),
        normalization=timm_normalization(backbone.name),
        expects=f"backbone={backbone.name!r}",
        finish=lambda state: {f"backbone.net.{names.get(key, key)}": tensor for key, tensor in state.items()},
        skip=tuple(key for key, name in names.items() if name is None),
    )


def count_classes(model: SegModel, weights: Weights) -> int | None:
    """Number of classes of weights in any layout that fits the network; None: it is not known.

    Raises:
        ValueError: they have no known layout.
    """
    if not isinstance(model, SegModel):
        return None
    layout = _detect(model, weights)
    return _classifier_rows(layout.convert(_split(layout, weights)[0]))


def _split(layout: Layout, weights: Weights) -> tuple[State, list[str]]:
    """The tensors that networks of a layout have, and the keys of the others."""
    skipped = [key for key in weights.tensors if key.startswith(layout.skip)]
    return {key: tensor for key, tensor in weights.tensors.items() if key not in skipped}, skipped


def _classifier_rows(state: State) -> int | None:
    classifier = state.get(f"{CLASSIFIERS[0]}weight")
    return len(classifier) if classifier is not None and classifier.ndim else None


def _check_settings(model: SegModel, weights: Weights, layout: Layout, part: str) -> None:
    """Compares the settings that no tensor shows but that change what the network computes."""
    settings = source_settings(weights, layout)
    check_normalization(model, weights, settings)
    theirs = _lists(settings.get("taps", {})) if part != "backbone" else {}
    for name, tap in _lists({name: tap._asdict() for name, tap in model.tap_info.items()}).items():
        if theirs and theirs.get(name) != tap:
            raise ValueError(
                f"{weights.source} was trained with tap {name} = {theirs.get(name)}; the network has {tap}: "
                f"correct its backbone, head, width or output_stride"
            )
    stride, network = model.tap_info["stage4"].stride, settings.get("network", {})
    backbone = getattr(model.backbone, "name", network.get("backbone"))
    if network.get("backbone", backbone) != backbone:
        raise ValueError(f"{weights.source} is a {network['backbone']}; the network's backbone is {backbone}")
    for theirs, what in (
        (network.get("output_stride"), f"{weights.source} was trained"),
        (layout.output_stride, f"{weights.source}: networks of the {layout.name} layout run"),
    ):
        if part != "backbone" and theirs not in (None, stride) and stride != model.tap_info["stage1"].stride:
            raise ValueError(f"{what} at output_stride={theirs}; the network has {stride}: correct output_stride")


def check_normalization(model: NormalizedModel, weights: Weights, settings: Mapping[str, Any]) -> None:
    """Raises ValueError if the weights were trained on images normalised in another way than the network's."""
    theirs = _lists(settings.get("normalization", {}))
    if any(theirs.get(key, value) != value for key, value in _lists(model.normalization._asdict()).items()):
        names = [name for name, value in NORMALIZATIONS.items() if _lists(value._asdict()) == theirs]
        raise ValueError(
            f"{weights.source} was trained on images normalised by {theirs}; the network normalises them by "
            f"{_lists(model.normalization._asdict())}: set normalization={names[0]!r}"
            if names
            else f"{weights.source} was trained on images normalised by {theirs}; expected one of "
            f"{', '.join(NORMALIZATIONS)}: add it to NORMALIZATIONS in models/base.py"
        )


def source_settings(weights: Weights, layout: Layout | None = None) -> dict[str, Any]:
    """The metadata of a source (see ``Weights``), with the normalisation of its layout where it has none."""
    layout = layout or find_layout(weights.tensors)
    if layout is None or layout.normalization is None:
        return weights.metadata
    return {"normalization": layout.normalization._asdict(), **weights.metadata}


def _lists(value: Any) -> Any:
    """Tuples become lists, as in JSON."""
    if isinstance(value, Mapping):
        return {name: _lists(entry) for name, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def check_strict(wanted: State, state: State, weights: Weights, layout: Layout, part: str = "all") -> None:
    """Raises ValueError if tensors are missing, unknown or of another shape; names the first ones."""

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
    lines = [f"  {len(keys)} {kind}: {name_some(keys, 10)}" for kind, keys in problems.items() if keys]
    if lines:
        first = f"{weights.source} ({layout.name} layout) does not fit the network, which stays unchanged"
        if "network" in weights.metadata:
            first = f"{first}: {_describe(weights.metadata['network'], part)}"
            if sum(map(len, problems.values())) > 10:  # another network, not a damaged one
                lines = [f"  tensors: {', '.join(f'{len(keys)} {kind}' for kind, keys in problems.items() if keys)}"]
        hint = [f"  networks of this layout are {layout.expects}"] if layout.expects else []
        raise ValueError("\n".join([first, *lines, *hint]))


def _describe(network: Mapping[str, Any], part: str) -> str:
    """What a file says of its network, and the config's keys that make it fit."""
    names = ("backbone",) if part == "backbone" else ("backbone", "head", "width", "output_stride")
    names = ("source",) if "source" in network else names
    settings = " ".join(f"{name}={network[name]!r}" for name in names if network.get(name) is not None)
    said = f"by its metadata, this file holds a network of {settings}"
    if part == "backbone":
        return f"{said}: set student.{settings}"
    nothing = " ".join(f"teacher.{name}=None" for name in names)
    return f"{said}. Of a teacher set {nothing}, or drop these keys; of a student, give the config of its run"
