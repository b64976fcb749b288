"""Networks in Hugging Face's format, from a folder or its hub: tensors, and the settings in their config files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from models.mit import HEADS, MLP_RATIO, REDUCTIONS, VARIANTS
from models.weights.metadata import check_metadata
from models.weights.tensors import Weights, first_line, read_tensors

STUDENT = "student.safetensors"  # of a run, and in what scripts/publish.py writes
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


def is_hugging_face(config: Path) -> bool:
    """Whether the file is a config of Hugging Face's, which has the type of the network; other libraries' lack it."""
    return config.is_file() and "model_type" in read_json(config)


def settings_of(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in HUGGING_FACE_SETTINGS if (folder / name).is_file()}


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a Hugging Face network in a local folder."""
    weights = [folder / name for name in HUGGING_FACE_FILES if (folder / name).is_file()]
    if not weights or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"folder {folder} is not a network of Hugging Face: expected config.json and one of "
            f"{', '.join(HUGGING_FACE_FILES)} in it; give the path of a file if the weights are something else"
        )
    return {"weights": weights[0], **settings_of(folder)}


def download(name: str) -> Path:
    """A folder with the network OWNER/NAME of Hugging Face's hub, or with that of an earlier download.

    Raises:
        FileNotFoundError: it cannot be downloaded; the message says how to do it by hand.
    """
    try:
        found = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
        return found if [*found.glob("*.safetensors")] else Path(snapshot_download(name, allow_patterns=["*.bin"]))
    except Exception as error:  # the hub's client, and the network below it, raise many types
        raise FileNotFoundError(
            f"{name} of Hugging Face's hub cannot be downloaded ({first_line(error)}). By hand: save all files of "
            f"https://huggingface.co/{name} in a folder and give its path"
        ) from error


def student_file(source: str | Path) -> Path:
    """The file of a student: of a folder or ``hf:NAME`` that scripts/publish.py has made; else ``source`` itself.

    Raises:
        FileNotFoundError: it cannot be downloaded.
    """
    if not str(source).startswith("hf:"):
        return Path(source) / STUDENT if Path(source).is_dir() else Path(source)
    name = str(source).removeprefix("hf:")
    try:
        return Path(hf_hub_download(name, STUDENT))
    except Exception as error:  # the hub's client, and the network below it, raise many types
        raise FileNotFoundError(
            f"'hf:{name}': {STUDENT} cannot be downloaded ({first_line(error)}). By hand: save it from "
            f"https://huggingface.co/{name} and give its path"
        ) from error


def read_hugging_face(source: str, files: Mapping[str, Path]) -> Weights:
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
    for key, value in HUGGING_FACE_NETWORK.items():
        if config.get(key, value) != value:
            raise ValueError(f"{files['config.json']}: {key} is {config[key]}; the networks here have {value}")
    sizes, width = [config.get("hidden_sizes"), config.get("depths")], config.get("decoder_hidden_size")
    if sizes not in known or not isinstance(width, int):
        raise ValueError(
            f"{files['config.json']}: hidden_sizes, depths and decoder_hidden_size are {sizes[0]}, {sizes[1]} and "
            f"{width!r}; expected those of one of {', '.join(VARIANTS)}"
        )
    backbone = list(VARIANTS)[known.index(sizes)]
    metadata: dict[str, Any] = {"network": {"backbone": backbone, "head": "segformer", "width": width}}
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
