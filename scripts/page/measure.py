"""What the page shows of the validation images: figures of every network, and pictures of a few images."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from configs.schema import Experiment, autocast_dtype
from datasets.base import SegDataset
from engine.boundary import BoundaryIoU
from engine.metrics import ConfusionMatrix, SegMetrics
from models.inference import predict
from scripts.benchmarks.timing import synchronize
from utils.names import OUTSIDE
from utils.visualize import VOID_COLOR, Color, colorize

GRID = 48  # columns of the map of disagreement
# Where a student and its teacher are right, in the colours of the page's legend; they differ in brightness too.
AGREEMENT: dict[str, Color] = {
    "both right": (205, 216, 225),
    "student wrong, teacher right": (213, 94, 0),
    "student right, teacher wrong": (0, 114, 178),
    "both wrong": (60, 60, 60),
}
ALONE: dict[str, Color] = {"right": AGREEMENT["both right"], "wrong": AGREEMENT["student wrong, teacher right"]}


class Subject(NamedTuple):
    """A network to measure, as its run validates."""

    network: nn.Module
    config: Experiment
    device: torch.device
    teacher: str | None = None  # of this student, by its name

    def predict(self, image: Tensor) -> Tensor:
        """Class map H W on the CPU of an image 3 H W uint8."""
        dtype = autocast_dtype(self.config.eval_precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return predict(self.network, image.to(self.device), **self.config.eval.protocol)[0].cpu()


@dataclass
class Scores:
    """Of one network on the validation images.

    Attributes:
        metrics: with boundary IoU.
        images: mIoU (0..1) by the name of the image; nan without labelled pixels.
        milliseconds: median time of a prediction.
        agreement: labelled pixels of each kind of ``AGREEMENT``; None without a teacher.
        disagreement: h x ``GRID``, the share of the images in which the student and its teacher differ at this place.
    """

    metrics: SegMetrics
    images: dict[str, float]
    milliseconds: float
    agreement: np.ndarray | None = None
    disagreement: np.ndarray | None = None


@dataclass
class _Counts:
    confusion: ConfusionMatrix
    boundary: BoundaryIoU
    images: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    agreement: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    differs: np.ndarray | float = 0.0


def measure(dataset: SegDataset, subjects: Mapping[str, Subject]) -> tuple[dict[str, Scores], dict[str, str]]:
    """Measures all networks in one pass over the data; only one image and its predictions are in memory.

    Args:
        dataset: the validation set.
        subjects: by name, a teacher before its students.

    Returns:
        The figures by name, and the errors of the images that cannot be read, by name: they are left out.

    Raises:
        ValueError: a network cannot predict an image, or no image can be read.
    """
    K = dataset.num_classes
    counts = {name: _Counts(ConfusionMatrix(K), BoundaryIoU(K)) for name in subjects}
    unreadable: dict[str, str] = {}
    for index in tqdm(range(len(dataset)), desc=f"{len(subjects)} network(s)", leave=False, disable=None):
        try:
            sample = dataset[index]
        except (OSError, ValueError) as error:
            unreadable[dataset.names[index]] = str(error)
            continue
        label, maps = sample["label"], {}
        for name, subject in subjects.items():
            start, of = time.perf_counter(), counts[name]
            maps[name] = prediction = subject.predict(sample["image"])
            synchronize(subject.device)
            of.seconds.append(time.perf_counter() - start)
            single = ConfusionMatrix(K)
            single.update(prediction, label)
            of.confusion.counts += single.counts
            of.images[sample["name"]] = single.compute().miou
            of.boundary.update(prediction, label)
            if subject.teacher is not None:
                kinds = agreement(prediction.numpy(), maps[subject.teacher].numpy(), label.numpy())
                of.agreement += np.bincount(kinds[kinds < 4], minlength=4)
                differs = (prediction != maps[subject.teacher]).numpy().astype(np.float32)
                rows = max(1, round(GRID * label.shape[0] / label.shape[1])) if len(of.images) == 1 else len(of.differs)
                of.differs = of.differs + cv2.resize(differs, (GRID, rows), interpolation=cv2.INTER_AREA)
    if len(unreadable) == len(dataset):
        raise ValueError(f"no image of {dataset.root} can be read; the first: {unreadable[dataset.names[0]]}")
    scores = {}
    for name, of in counts.items():
        metrics = replace(of.confusion.compute(), **of.boundary.compute())
        scores[name] = Scores(metrics, of.images, 1000 * median(of.seconds))
        if subjects[name].teacher is not None:
            scores[name].agreement, scores[name].disagreement = of.agreement, of.differs / len(of.images)
    return scores, unreadable


def agreement(student: np.ndarray, teacher: np.ndarray | None, label: np.ndarray) -> np.ndarray:
    """The kind of each pixel, H W: its number in ``AGREEMENT`` (in ``ALONE`` without a teacher), 4 for void."""
    wrong = student != label
    kinds = wrong.astype(np.uint8)
    if teacher is not None:
        teacher_wrong = teacher != label
        kinds = np.where(wrong, np.where(teacher_wrong, 3, 1), np.where(teacher_wrong, 2, 0)).astype(np.uint8)
    return np.where(label >= OUTSIDE, np.uint8(4), kinds)


def pictures_of(
    dataset: SegDataset, index: int, subjects: Mapping[str, Subject], width: int
) -> list[tuple[str, np.ndarray]]:
    """(title, picture) of an image, its truth, the teachers' class maps, and the students' maps and errors."""
    sample = dataset[index]
    label = sample["label"].numpy()
    size = width, max(1, round(width * label.shape[0] / label.shape[1]))

    def small(image: np.ndarray, how: int = cv2.INTER_NEAREST) -> np.ndarray:
        return cv2.resize(image, size, interpolation=how)

    found = [("image", small(sample["image"].permute(1, 2, 0).numpy(), cv2.INTER_AREA))]
    found.append(("truth", colorize(small(label), dataset.palette)))
    maps = {name: subject.predict(sample["image"]).numpy() for name, subject in subjects.items()}
    taught = {subject.teacher for subject in subjects.values()}
    for name, subject in subjects.items():
        found.append((name, colorize(small(maps[name]), dataset.palette)))
        if name not in taught:
            teacher = maps.get(subject.teacher)
            colors = list((ALONE if teacher is None else AGREEMENT).values())
            table = np.full((5, 3), VOID_COLOR, np.uint8)
            table[: len(colors)] = colors
            found.append((f"{name}: errors", table[small(agreement(maps[name], teacher, label))]))
    return found


def extremes(
    scores: Mapping[str, Scores], students: Sequence[str], gain: Mapping[str, float], count: int
) -> dict[str, list[str]]:
    """Names of the 'worst' images, by their mean mIoU over these students, and of the most 'improved', if any gained.

    Args:
        scores: of all networks, by name.
        students: names, one or more.
        gain: in mIoU, by image; empty: nothing to compare with.
        count: images of each kind.
    """
    mean = {name: sum(scores[student].images[name] for student in students) for name in scores[students[0]].images}
    worst = sorted((name for name in mean if mean[name] == mean[name]), key=mean.get)
    improved = sorted((name for name in gain if gain[name] > 0), key=gain.get, reverse=True)
    return {"worst": worst[:count], "improved": improved[:count]}
