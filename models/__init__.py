"""Segmentation networks: a backbone and a head by name."""

from pathlib import Path
from typing import Any

from torch import nn

from models.backbones import build_backbone
from models.base import (
    BACKBONES,
    HEADS,
    NORMALIZATIONS,
    Backbone,
    ModelSpec,
    Normalization,
    SegModel,
    SegOutput,
    Tap,
)
from models.class_map import MappedModel
from models.heads import deeplabv3, pspnet, segformer  # noqa: F401  (each registers its heads)
from models.heads.fcn import FCNHead
from models.weights.load import LoadReport, load_read_weights, load_weights, source_settings
from models.weights.sources import Weights, read_weights
from utils.names import unknown_name

__all__ = [
    "BACKBONES",
    "HEADS",
    "NORMALIZATIONS",
    "Backbone",
    "LoadReport",
    "MappedModel",
    "ModelSpec",
    "Normalization",
    "SegModel",
    "SegOutput",
    "Tap",
    "Weights",
    "build_backbone",
    "build_model",
    "count_parameters",
    "load_read_weights",
    "load_student",
    "load_weights",
    "read_weights",
    "source_settings",
]


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
        backbone: one of ``BACKBONES`` or any four-stage network of timm.
        head: one of ``HEADS``.
        num_classes: K.
        output_stride: 8, 16 or 32; None is the head's own (DeepLabV3 and PSPNet 8, SegFormer 32).
        width: channels of the head; None is the head's own.
        aux: adds an FCN head on stage 3, which runs in training mode only.
        dropout: probability in the heads.
        drop_path: stochastic depth of the backbone.
        normalization: one of ``NORMALIZATIONS``, or the statistics themselves.

    Raises:
        ValueError: an unknown name (with the nearest choices), or a backbone that cannot do what is asked.
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


def load_student(path: str | Path) -> tuple[SegModel, dict[str, Any]]:
    """Rebuilds a trained network from its file alone. No code that the file names is imported or run.

    Args:
        path: ``student.safetensors``, or a checkpoint (``best.pt``, ``last.pt``, ...) of a run.

    Returns:
        The network in evaluation mode, and what its file says of it: ``network`` (arguments of ``build_model``),
        ``class_names``, ``palette`` (RGB a class), ``normalization``, ``taps``, ``step``, ``miou`` (0..1, of the best
        validation), ``config`` and ``environment`` of the run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, does not describe its network, or does not fit its own description.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; expected student.safetensors or a checkpoint of a run")
    weights = read_weights(path)
    about = weights.about
    lacking = [name for name in ("network", "class_names", "palette") if name not in about]
    if lacking:
        raise ValueError(
            f"{path} does not say how its network is built (no {', '.join(lacking)}): expected a student.safetensors "
            f"or checkpoint that train_kd.py wrote"
        )
    try:
        model = build_model(num_classes=len(about["class_names"]), **about["network"])
    except (ValueError, RuntimeError) as error:
        own = about.get("config", {}).get("custom_imports")
        hint = f"; import {', '.join(own)} first: its config names this in custom_imports" if own else ""
        raise ValueError(f"{path} describes a network that cannot be built: {error}{hint}") from error
    load_read_weights(model, weights)
    return model.eval(), about


def count_parameters(model: nn.Module) -> int:
    """Number of weights, as papers count them (the auxiliary head included where there is one)."""
    return sum(parameter.numel() for parameter in model.parameters())
