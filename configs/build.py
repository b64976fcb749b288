"""From a validated config to objects: the one place that ``train_kd.py``, ``eval.py`` and the scripts share.

Every error of a component is blamed on the config file and section that asked for it.
"""

from collections.abc import Sequence
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
    "teacher.weights": "train the teacher first (pretrained/README.md says how; the demo's is trained by "
    "scripts/quickstart.sh)",
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
    config: Experiment, source: str, class_names: Sequence[str], pretrained: bool = True
) -> tuple[SegModel, LoadReport | None]:
    """The student, and what ``student.pretrained`` brought to it (None where it starts from random weights).

    ``pretrained=False`` leaves that file alone: for a dry run, or for weights that are loaded afterwards.
    """
    with blame(source, "student"):
        student = _build_network(config.student, len(class_names), config.student.aux)
    report = None
    if pretrained and config.student.pretrained is not None:
        _require_file(config.student.pretrained, source, "student.pretrained")
        with blame(source, "student.pretrained"):
            report = load_weights(student, config.student.pretrained, part="backbone")
    return student, report


def build_teacher(
    config: Experiment, source: str, class_names: Sequence[str], pretrained: bool = True
) -> tuple[SegModel | None, LoadReport | None]:
    """The frozen teacher in eval mode with what was loaded into it, or None twice where the config has no teacher."""
    if config.teacher is None:
        return None, None
    with blame(source, "teacher"):
        teacher = _build_network(config.teacher, len(class_names), aux=False)
    report = None
    if pretrained:
        _require_file(config.teacher.weights, source, "teacher.weights")
        with blame(source, "teacher.weights"):
            report = load_trained(teacher, config.teacher.weights, class_names)
    return teacher.requires_grad_(False).eval(), report


def build_distiller(config: Experiment, source: str, student: SegModel, teacher: SegModel | None) -> Distiller:
    """Student, task loss and distillation method in the one module that is trained."""
    method: nn.Module | None = None
    if teacher is not None:
        with blame(source, "distill"):
            method = build_method(student=student.spec, teacher=teacher.spec, **config.distill.model_dump())
    weights = config.train.class_weights
    if weights is not None and len(weights) != student.num_classes:
        raise ConfigError(
            f"{source}: train.class_weights: {len(weights)} weights for {student.num_classes} classes; give one a class"
        )
    with blame(source, "train"):
        task = TaskLoss(config.train.aux_weight if config.student.aux else 0.0, weights)
        return Distiller(student, task, method)


def load_trained(model: SegModel, path: str | Path, class_names: Sequence[str]) -> LoadReport:
    """Loads a whole trained network for a dataset of ``class_names``.

    Raises:
        FileNotFoundError, ValueError: as ``load_weights``; and if the file says that its classes are others.
    """
    report = load_weights(model, path, part="all")
    trained_on = report.about.get("class_names", class_names)
    if list(trained_on) != list(class_names):
        raise ValueError(f"{path} was trained on the classes {list(trained_on)}; the dataset has {list(class_names)}")
    return report


def _require_file(path: str, source: str, key: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"{source}: {key}: {path} does not exist; {HOW_TO_GET[key]}")
