"""From a validated config to objects: the one place that ``train_kd.py``, ``eval.py`` and the scripts share.

Every error of a component is blamed on the config file and section that asked for it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.schema import Experiment, Network, SeveralMethods
from datasets import build_dataset
from datasets.base import SegDataset, TrainStream
from datasets.packed import describe_sample
from datasets.transforms import TrainTransform
from engine.teacher_cache import TeacherCache
from losses import Composed, build_method
from losses.distiller import Distiller
from losses.task import TaskLoss
from models import (
    LoadReport,
    MappedModel,
    Normalization,
    SegModel,
    SegOutput,
    Weights,
    build_model,
    load_read_weights,
    load_weights,
    read_weights,
    source_settings,
)
from utils.config import ConfigError, config_errors
from utils.distributed import World
from utils.names import unknown_name

HOW_TO_GET = {
    "student.pretrained": "python scripts/download_pretrained.py fetches what pretrained/README.md lists; None "
    "starts from random weights",
    "teacher.weights": "train the teacher first (pretrained/README.md says how; the demo's is trained by "
    "scripts/quickstart.sh)",
}


def build_split(config: Experiment, source: str, split: str, check_files: bool = True) -> SegDataset:
    """The dataset of ``split`` ('train', 'val' or 'test') at full size, not augmented.

    ``check_files=False`` accepts a list of which files are missing: for whoever names each of them.
    """
    list_file = getattr(config.data, f"{split}_list")
    if list_file is None:
        raise ConfigError(f"{source}: data.{split}_list is None: this config has no {split} split")
    packed = None if config.data.packed is None else Path(config.data.packed) / split
    with config_errors(source, "data"):
        return build_dataset(list_file=list_file, packed=packed, check_files=check_files, **config.data.options)


def build_train_stream(config: Experiment, source: str) -> TrainStream:
    """The endless augmented training stream, indexed by position."""
    dataset, data = build_split(config, source, "train"), config.data
    seed = config.train.seed if data.seed is None else data.seed
    skip_bad = data.on_bad_sample == "skip"
    return TrainStream(dataset, TrainTransform(**data.transform), seed, data.distinct_epochs, skip_bad)


NETWORK = ("backbone", "head", "output_stride", "width", "dropout", "drop_path", "normalization")


def _settings(network: Network) -> dict[str, Any]:
    """Arguments of ``build_model``."""
    return {name: getattr(network, name) for name in NETWORK}


def build_student(
    config: Experiment, source: str, class_names: Sequence[str], pretrained: bool = True
) -> tuple[SegModel, LoadReport | None]:
    """The student, and what ``student.pretrained`` brought to it (None where it starts from random weights).

    ``pretrained=False`` leaves that file alone: for a dry run, or for weights that are loaded afterwards.
    """
    with config_errors(source, "student"):
        student = build_model(num_classes=len(class_names), aux=config.student.aux, **_settings(config.student))
    report = None
    if pretrained and config.student.pretrained is not None:
        with _weights_errors(source, "student.pretrained"):
            report = load_weights(student, config.student.pretrained, part="backbone")
    return student, report


def build_teacher(
    config: Experiment, source: str, class_names: Sequence[str], pretrained: bool = True
) -> tuple[SegModel | MappedModel | None, LoadReport | None]:
    """The frozen teacher in eval mode with what was loaded into it, or None twice where the config has no teacher."""
    if config.teacher is None:
        return None, None
    settings, weights, report = _settings(config.teacher), None, None
    if pretrained or config.teacher.backbone is None:
        with _weights_errors(source, "teacher.weights"):
            weights = read_weights(config.teacher.weights)
            settings = _completed(settings, weights)
    names = config.teacher.class_map
    with config_errors(source, "teacher"):
        settings["normalization"] = settings["normalization"] or "imagenet"
        teacher = build_model(num_classes=len(class_names if names is None else names), **settings)
    if pretrained:
        with config_errors(source, "teacher.weights"):
            report = load_trained(teacher, weights, class_names if names is None else None)
    if names is not None:
        with config_errors(source, "teacher.class_map"):
            teacher = MappedModel(teacher, _class_indices(names, class_names), len(class_names))
    return teacher.requires_grad_(False).eval(), report


def build_teacher_cache(
    config: Experiment,
    source: str,
    stream: TrainStream,
    teacher: SegModel | MappedModel | None,
    report: LoadReport | None,
    world: World,
) -> TeacherCache | None:
    """The teacher's outputs on the stream, kept in ``teacher.cache``.

    None where the config names no such folder, and for a teacher into which nothing was loaded (``report`` is None).
    """
    if report is None or config.teacher.cache is None:
        return None
    taps = {}
    with config_errors(source, "teacher.cache_taps"):
        for name in config.teacher.cache_taps:
            if name not in teacher.tap_info:
                raise unknown_name("tap", name, teacher.tap_info)
            taps[name] = teacher.tap_info[name]
    maps = {"logits": teacher.tap_info["head"]._replace(channels=teacher.num_classes), **taps}
    shapes = {
        name: (tap.channels, *(-(-side // tap.stride) for side in config.data.crop_size)) for name, tap in maps.items()
    }
    dataset, elsewhere = stream.dataset, {"root", "packed", "workers", "val_list", "test_list", "on_bad_sample"}
    samples = json.dumps([describe_sample(dataset, index) for index in range(len(dataset))])
    with open(report.path, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    found = {"weights": weights, "normalization": teacher.normalization}  # in place of what the config calls them
    facts = {
        "teacher": {**config.teacher.model_dump(exclude={"cache", "cache_taps", "shard"}), **found},
        "data": {**config.data.model_dump(exclude=elsewhere), "seed": stream.seed},
        "samples": hashlib.sha256(samples.encode()).hexdigest(),
        "class_names": dataset.class_names,
        "precision": config.train.precision,
    }
    dtype = config.train.autocast_dtype or torch.float32
    with config_errors(source, "teacher.cache"):
        return TeacherCache(config.teacher.cache, facts, stream.period, shapes, SegOutput, dtype, world)


def _class_indices(names: Sequence[str | None], class_names: Sequence[str]) -> list[int | None]:
    """Places in ``class_names``.

    Raises:
        ValueError: for a name that is not there, with the nearest.
    """
    for name in names:
        if name is not None and name not in class_names:
            raise unknown_name("class", name, class_names)
    return [None if name is None else list(class_names).index(name) for name in names]


def _completed(settings: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """A teacher's settings, where the config leaves them open, as its weights say of themselves.

    Raises:
        ValueError: neither the config nor the weights say how the network is built.
    """
    said = source_settings(weights)
    open_to = {}
    if "normalization" in said:
        mean, std, bgr = (said["normalization"][name] for name in Normalization._fields)
        open_to["normalization"] = Normalization(tuple(mean), tuple(std), bgr)
    if settings["backbone"] is None:
        if "network" not in said:
            raise ValueError(
                f"{weights.source} does not say how its network is built: give backbone, head and, where they are not "
                f"the head's own, width and output_stride"
            )
        open_to = {name: said["network"].get(name) for name in NETWORK if name != "normalization"} | open_to
    return {name: open_to.get(name) if value is None else value for name, value in settings.items()}


def build_distiller(config: Experiment, source: str, student: SegModel, teacher: SegModel | None) -> Distiller:
    """Student, task loss and distillation method in the one module that is trained."""
    method: nn.Module | None = None
    if teacher is not None:
        with config_errors(source, "distill"):
            several = isinstance(config.distill, SeveralMethods)
            methods = {
                each.type: build_method(student=student.spec, teacher=teacher.spec, **each.model_dump())
                for each in (config.distill.methods if several else (config.distill,))
            }
            method = Composed(methods) if several else methods[config.distill.type]
    weights = config.train.class_weights
    if weights is not None and len(weights) != student.num_classes:
        raise ConfigError(
            f"{source}: train.class_weights: {len(weights)} weights for {student.num_classes} classes; give one a class"
        )
    with config_errors(source, "train"):
        task = TaskLoss(config.train.aux_weight if config.student.aux else 0.0, weights, config.train.ohem)
        return Distiller(student, task, method)


def load_trained(model: SegModel, weights: Weights, class_names: Sequence[str] | None) -> LoadReport:
    """Loads a whole trained network for a dataset of ``class_names``, or for classes that are mapped to others (None).

    Raises:
        ValueError: as ``load_weights``; and if the file says that its classes are others.
    """
    trained_on = weights.metadata.get("class_names")
    report = load_read_weights(model, weights, part="all")
    if None not in (trained_on, class_names) and list(trained_on) != list(class_names):
        raise ValueError(
            f"{weights.source} was trained on the classes {list(trained_on)}; the dataset has {list(class_names)}"
        )
    return report


@contextmanager
def _weights_errors(source: str, key: str) -> Iterator[None]:
    """As ``config_errors``; a file that does not exist gets word of where it comes from."""
    with config_errors(source, key):
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {HOW_TO_GET[key]}") from error
