"""From a validated config to objects: the one place that ``train_kd.py``, ``eval.py`` and the scripts share.

Every error of a component is blamed on the config file and section that asked for it.
"""

from pathlib import Path

from torch import nn

from configs.schema import Experiment, Network
from datasets import build_dataset
from datasets.base import SegDataset, TrainStream
from datasets.transforms import TrainTransform
from losses import build_method
from losses.distiller import Distiller
from losses.task import TaskLoss
from models import SegModel, build_model
from models.weights import LoadReport, load_weights
from utils.config import ConfigError, blame

HOW_TO_GET = {
    "student.pretrained": "pretrained/README.md says where to get it; None starts from random weights",
    "teacher.weights": "train the teacher first (configs/baselines/); pretrained/README.md says how",
}


def build_split(config: Experiment, source: str, split: str) -> SegDataset:
    """The dataset of ``split`` ('train', 'val' or 'test') at full size, not augmented."""
    list_file = getattr(config.data, f"{split}_list")
    if list_file is None:
        raise ConfigError(f"{source}: data.{split}_list is None: this config has no {split} split")
    with blame(source, "data"):
        return build_dataset(list_file=list_file, **config.data.options)


def build_train_stream(config: Experiment, source: str) -> TrainStream:
    """The endless augmented training stream, indexed by position."""
    return TrainStream(build_split(config, source, "train"), TrainTransform(**config.data.transform), config.train.seed)


def _build_network(network: Network, num_classes: int, aux: bool) -> SegModel:
    names = ("backbone", "head", "output_stride", "width", "dropout", "drop_path", "normalization")
    return build_model(num_classes=num_classes, aux=aux, **{name: getattr(network, name) for name in names})


def build_student(
    config: Experiment, source: str, num_classes: int, pretrained: bool = True
) -> tuple[SegModel, LoadReport | None]:
    """The student, and what ``student.pretrained`` brought to it (None where it starts from random weights).

    ``pretrained=False`` leaves that file alone: for a dry run, or for weights that are loaded afterwards.
    """
    with blame(source, "student"):
        student = _build_network(config.student, num_classes, config.student.aux)
    report = None
    if pretrained and config.student.pretrained is not None:
        report = _load(student, config.student.pretrained, "backbone", source, "student.pretrained")
    return student, report


def build_teacher(
    config: Experiment, source: str, num_classes: int, pretrained: bool = True
) -> tuple[SegModel | None, LoadReport | None]:
    """The frozen teacher in eval mode with what was loaded into it, or None twice where the config has no teacher."""
    if config.teacher is None:
        return None, None
    with blame(source, "teacher"):
        teacher = _build_network(config.teacher, num_classes, aux=False)
    report = _load(teacher, config.teacher.weights, "all", source, "teacher.weights") if pretrained else None
    return teacher.requires_grad_(False).eval(), report


def build_distiller(config: Experiment, source: str, student: SegModel, teacher: SegModel | None) -> Distiller:
    """Student, task loss and distillation method in the one module that is trained."""
    method: nn.Module | None = None
    if teacher is not None:
        with blame(source, "distill"):
            method = build_method(student=student.spec, teacher=teacher.spec, **config.distill.model_dump())
    return Distiller(student, TaskLoss(aux_weight=config.train.aux_weight if config.student.aux else 0.0), method)


def _load(model: SegModel, path: str, part: str, source: str, key: str) -> LoadReport:
    if not Path(path).is_file():
        raise ConfigError(f"{source}: {key}: {path} does not exist; {HOW_TO_GET[key]}")
    with blame(source, key):
        return load_weights(model, path, part)
