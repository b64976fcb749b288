"""Builds student and distiller from a validated config (data: ``engine.data``, teacher: ``engine.teacher``).

Every error of a component names the config file and the key that asked for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from configs.schema import Experiment, Network, SeveralMethods, Statistics
from losses import Composed, build_method
from losses.distiller import Distiller
from losses.task import TaskLoss
from models import (
    LoadReport,
    SegModel,
    Weights,
    build_model,
    build_wrapped,
    count_classes,
    freeze,
    load_read_weights,
    load_weights,
    read_weights,
)
from utils.config import ConfigError, config_errors

NETWORK = ("backbone", "head", "output_stride", "width", "dropout", "drop_path", "normalization")
HOW_TO_GET = {
    "student.pretrained": "python scripts/download_pretrained.py fetches what pretrained/README.md lists; None "
    "starts from random weights",
    "student.init_from": "give a student.safetensors, or another file that docs/weights.md describes; None starts from "
    "student.pretrained",
    "teacher.weights": "train the teacher first (pretrained/README.md says how; the demo's is trained by "
    "scripts/quickstart.sh)",
}


def build_student(
    config: Experiment, source: str, class_names: Sequence[str], pretrained: bool = True
) -> tuple[SegModel, LoadReport | None]:
    """The student, and what was loaded from ``student.init_from`` or ``student.pretrained`` (None: random weights).

    ``pretrained=False`` does not read that file: when other weights are loaded afterwards.
    """
    settings = config.student
    if settings.source is None:
        with config_errors(source, "student"):
            student = build_model(num_classes=len(class_names), aux=settings.aux, **network_settings(settings))
    else:
        with config_errors(source, f"student.source={settings.source}"):
            student = build_wrapped(num_classes=len(class_names), **settings.wrapped)[0].train()
    with config_errors(source, "student.freeze"):
        freeze(student, settings.freeze)
    report = None
    if pretrained and settings.init_from is not None:
        with weights_errors(source, "student.init_from"):
            report = load_to_fine_tune(student, read_weights(settings.init_from), class_names)
    elif pretrained and settings.pretrained is not None:
        with weights_errors(source, "student.pretrained"):
            report = load_weights(student, settings.pretrained, part="backbone")
    return student, report


def build_distiller(
    config: Experiment,
    source: str,
    student: SegModel,
    teacher: nn.Module | None,
    counted_weights: Sequence[float] | None = None,
) -> Distiller:
    """Student, task loss and distillation method in the one module that is trained.

    Args:
        teacher: only its ``spec`` is read; None: the student is trained alone.
        counted_weights: what ``train.class_weights='auto'`` stands for (``check_labels``); None: all 1, where no labels
            are read.
    """
    method: nn.Module | None = None
    if config.self_taught:  # the average of the student's weights declares what the student does
        teacher = student
    if teacher is not None:
        with config_errors(source, "distill"):
            methods = {
                each.type: build_method(student=student.spec, teacher=teacher.spec, **each.model_dump())
                for each in config.methods
            }
            several = isinstance(config.distill, SeveralMethods)
            method = Composed(methods) if several else methods[config.distill.type]
    weights = counted_weights if config.train.class_weights == "auto" else config.train.class_weights
    if weights is not None and len(weights) != student.num_classes:
        raise ConfigError(
            f"{source}: train.class_weights: {len(weights)} weights for {student.num_classes} classes; give one a class"
        )
    with config_errors(source, "train"):
        task = TaskLoss(config.train.aux_weight if config.student.aux else 0.0, weights, config.train.ohem)
        return Distiller(student, task, method)


def network_settings(network: Network) -> dict[str, Any]:
    """Arguments of ``build_model`` that a config section gives."""
    settings = {name: getattr(network, name) for name in NETWORK}
    if isinstance(network.normalization, Statistics):
        settings["normalization"] = network.normalization.in_pixels
    return settings


def load_trained(model: SegModel, weights: Weights, class_names: Sequence[str] | None) -> LoadReport:
    """Loads a whole trained network.

    Args:
        class_names: the dataset's, which must be the network's; None: a class map follows, so they may differ.

    Raises:
        ValueError: as ``load_weights``; or the file's metadata names other classes.
    """
    report = load_read_weights(model, weights, part="all")
    if class_names is not None:
        check_class_names(report, class_names)
    return report


def check_class_names(report: LoadReport, class_names: Sequence[str]) -> None:
    """Raises ValueError if the metadata of what was loaded names other classes than the data set has."""
    trained_on = report.metadata.get("class_names")
    if trained_on is not None and list(trained_on) != list(class_names):
        raise ValueError(
            f"{report.source} was trained on the classes {list(trained_on)}; the dataset has {list(class_names)}"
        )


def load_to_fine_tune(model: SegModel, weights: Weights, class_names: Sequence[str]) -> LoadReport:
    """Loads a whole trained network, without the last layer of its head if it has other classes.

    Its classes are compared by name, or by number where its metadata has no names.

    Raises:
        ValueError: as ``load_weights``.
    """
    trained_on, found = weights.metadata.get("class_names"), count_classes(model, weights)
    if found in (None, len(class_names)) and trained_on in (None, list(class_names)):
        return load_read_weights(model, weights)
    report = load_read_weights(model, weights, part="body")
    note = (
        f"it has other classes ({found}) than the data ({len(class_names)}): the classifier starts from random weights"
    )
    return report._replace(notes=(*report.notes, note))


@contextmanager
def weights_errors(source: str, key: str) -> Iterator[None]:
    """As ``config_errors``; for a file that does not exist, the error also says how to get it."""
    with config_errors(source, key):
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {HOW_TO_GET[key]}") from error
