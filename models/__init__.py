"""Segmentation networks: a backbone and a head by name."""

from pathlib import Path
from typing import Any

from torch import nn

from models.adapters import TRAINED, WrappedModel, build_wrapped, split_source
from models.backbones import build_backbone
from models.base import BACKBONES, HEADS, NORMALIZATIONS, ModelSpec, Normalization, SegModel, SegOutput, Tap, freeze
from models.class_map import MappedModel
from models.heads import deeplabv3, fpn, linear, pspnet, segformer  # each registers its heads
from models.heads.fcn import FCNHead
from models.weights.hugging_face import student_file
from models.weights.load import LoadReport, count_classes, load_read_weights, load_weights, source_settings
from models.weights.sources import read_weights
from models.weights.tensors import Weights
from utils.names import unknown_name


def build_model(
    backbone: str,
    head: str,
    num_classes: int,
    output_stride: int | None = None,
    width: int | None = None,
    aux: bool = False,
    dropout: float = 0.1,
    drop_path: float = 0.0,
    normalization: str | Normalization = "imagenet",
) -> SegModel:
    """Builds a network with random weights.

    Args:
        backbone: one of ``BACKBONES`` or any four-stage network or plain ViT of timm.
        head: one of ``HEADS``.
        num_classes: K.
        output_stride: 8, 16 or 32; None: the head's default (DeepLabV3 and PSPNet 8, the others 32).
            A plain ViT keeps the stride of its patches and needs 32.
        width: channels of the head; None: the head's default.
        aux: adds an FCN head on stage 3, which runs in training mode only.
        dropout: probability in the heads.
        drop_path: stochastic depth of the backbone.
        normalization: one of ``NORMALIZATIONS``, or the statistics themselves.

    Raises:
        ValueError: a name is unknown (the message gives the nearest choices), or the backbone does not support an
            argument.
    """
    build_head = HEADS[head]
    if isinstance(normalization, str):
        if normalization not in NORMALIZATIONS:
            raise unknown_name("normalization", normalization, NORMALIZATIONS)
        normalization = NORMALIZATIONS[normalization]
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1")
    if output_stride is None:
        output_stride = build_head.default_output_stride
    encoder = build_backbone(backbone, output_stride, drop_path)
    sizes = {} if width is None else {"width": width}
    decoder = build_head(encoder.tap_info, num_classes, dropout=dropout, **sizes)
    aux_head = FCNHead(encoder.tap_info["stage3"].channels, num_classes, dropout) if aux else None
    return SegModel(encoder, decoder, num_classes, aux_head, normalization)


def load_student(path: str | Path, source: str | None = None) -> tuple[SegModel | WrappedModel, dict[str, Any]]:
    """Rebuilds a trained network from its file alone. No code that only the file names is imported or run.

    Args:
        path: ``student.safetensors``, or a checkpoint (``best.pt``, ``last.pt``, ...) of a run; or a folder that
            scripts/publish.py has made, or ``hf:NAME`` for such a one on Hugging Face's hub.
        source: ``student.source`` of the run, if it is a function of yours (``'python:...'``): this allows its call.

    Returns:
        The network in evaluation mode, and the file's metadata: ``network`` (arguments of ``build_model``, or of
        ``build_wrapped``), ``class_names``, ``palette`` (one RGB colour a class), ``normalization``, ``taps``,
        ``step``, ``miou`` (0..1, of the best validation), ``config`` and ``environment`` of the run.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        ValueError: it is damaged, has no metadata of its network, its tensors do not fit its metadata, or it names a
            function that ``source`` does not.
    """
    path = student_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected student.safetensors or a checkpoint of a run")
    weights = read_weights(path)
    metadata = weights.metadata
    missing = [name for name in ("network", "class_names", "palette") if name not in metadata]
    if missing:
        raise ValueError(
            f"{path} does not say how its network is built: its metadata has no {', '.join(missing)}; expected a "
            f"student.safetensors or a checkpoint that train_kd.py wrote"
        )
    network = {"num_classes": len(metadata["class_names"]), **metadata["network"]}
    named = network.get("source", "")
    if named.startswith("python:") and named != source:
        raise ValueError(
            f"{path}: its network is built by {named}, and a file alone runs no code: if you trust this function, name "
            f"it: load_student(path, source={named!r}), or predict.py --source {named}"
        )
    try:
        if named:
            model, _ = build_wrapped(normalization=Normalization.of(metadata["normalization"]), **network)
        else:
            model = build_model(**network)
    except (ValueError, RuntimeError) as error:
        own = metadata.get("config", {}).get("custom_imports")
        hint = f"; import {', '.join(own)} first: its config names this in custom_imports" if own else ""
        raise ValueError(f"{path} describes a network that cannot be built: {error}{hint}") from error
    load_read_weights(model, weights)
    return model.eval(), metadata


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, with those of the auxiliary head where there is one."""
    return sum(parameter.numel() for parameter in model.parameters())
