"""Measures the networks of a report on the validation images, and makes pictures of some of them."""

import time
from collections.abc import Mapping
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
from engine.teacher import Teacher, in_own_resolution
from models.inference import predict
from models.sizes import size_errors
from utils.names import OUTSIDE
from utils.visualize import VOID_COLOR, Color, colorize

GRID = 48  # columns of a map of disagreement
# What an error map shows of a student without a teacher (two kinds) and with one (the first, and three more).
KINDS: dict[str, Color] = {
    "right": (205, 216, 225),
    "wrong, no teacher": (204, 121, 167),
    "wrong, teacher right": (213, 94, 0),
    "right, teacher wrong": (0, 114, 178),
    "both wrong": (60, 60, 60),
    "void": VOID_COLOR,
}


class Subject(NamedTuple):
    """A network to measure as its run validates; ``teacher`` is the name of its teacher among the subjects."""

    network: nn.Module
    config: Experiment
    device: torch.device
    teacher: str | None = None

    def predict(self, image: Tensor) -> Tensor:
        """Class map H W on the CPU of an image 3 H W uint8."""
        dtype = autocast_dtype(self.config.eval_precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            network, protocol = in_own_resolution(self.network, self.config.eval.protocol)
            return predict(network, image.to(self.device), **protocol)[0].cpu()


@dataclass
class Scores:
    """Counts of one network over the images; ``images`` has the mIoU (0..1) of each, nan without labelled pixels.

    With a teacher, ``kinds`` has the pixels of each of ``KINDS``, and ``differs``, h x ``GRID``, in how many images the
    two differ at a place.
    """

    confusion: ConfusionMatrix
    boundary: BoundaryIoU
    images: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    kinds: np.ndarray = field(default_factory=lambda: np.zeros(len(KINDS), np.int64))
    differs: np.ndarray | None = None

    @property
    def milliseconds(self) -> float:
        return 1000 * median(self.seconds)

    @property
    def metrics(self) -> SegMetrics:
        return replace(self.confusion.compute(), **self.boundary.compute())


def measure(dataset: SegDataset, subjects: Mapping[str, Subject]) -> tuple[dict[str, Scores], dict[str, str]]:
    """Measures all networks in one pass; only one image and its predictions are in memory.

    Args:
        dataset: the validation set.
        subjects: by name, a teacher before its students.

    Returns:
        The scores by name; and the errors of the images that cannot be read, by name, which are left out.

    Raises:
        ValueError: a network cannot predict an image, or no image can be read.
    """
    K = dataset.num_classes
    scores, unreadable = {name: Scores(ConfusionMatrix(K), BoundaryIoU(K)) for name in subjects}, {}
    for index in tqdm(range(len(dataset)), desc=f"{len(subjects)} network(s)", leave=False, disable=None):
        try:
            sample = dataset[index]
        except (OSError, ValueError) as error:
            unreadable[dataset.names[index]] = str(error)
            continue
        label, maps = sample["label"], {}
        for name, subject in subjects.items():
            settings, start, of = subject.config.eval, time.perf_counter(), scores[name]
            window = settings.crop_size if settings.mode == "slide" else None
            with size_errors(subject.network, dataset.files[index][0], label.shape, settings.scales, window):
                maps[name] = prediction = subject.predict(sample["image"])
            of.seconds.append(time.perf_counter() - start)
            single = ConfusionMatrix(K)
            single.update(prediction, label)
            of.confusion.counts += single.counts
            of.images[sample["name"]] = single.compute().miou
            of.boundary.update(prediction, label)
            if subject.teacher is not None:
                teacher = maps[subject.teacher]
                of.kinds += np.bincount(kinds_of_pixels(prediction, teacher, label).ravel(), minlength=len(KINDS))
                if of.differs is None:
                    of.differs = np.zeros((max(1, round(GRID * label.shape[0] / label.shape[1])), GRID))
                differs = (prediction != teacher).numpy().astype(np.float32)
                of.differs += cv2.resize(differs, of.differs.shape[::-1], interpolation=cv2.INTER_AREA)
    if len(unreadable) == len(dataset):
        raise ValueError(f"no image of {dataset.root} can be read; the first: {unreadable[dataset.names[0]]}")
    return scores, unreadable


def kinds_of_pixels(student: Tensor, teacher: Tensor | None, label: Tensor) -> np.ndarray:
    """The number in ``KINDS`` of each pixel, H W uint8."""
    wrong = (student != label).numpy()
    kinds = wrong.astype(np.uint8)
    if teacher is not None:
        kinds = np.where((teacher != label).numpy(), np.where(wrong, 4, 3), 2 * kinds).astype(np.uint8)
    return np.where(label.numpy() >= OUTSIDE, np.uint8(5), kinds)


def make_pictures(
    dataset: SegDataset, index: int, subjects: Mapping[str, Subject], width: int
) -> list[tuple[str, np.ndarray]]:
    """(title, H W 3) of an image, its truth, and the class maps of all networks, with the errors of the students."""
    sample = dataset[index]
    image, label = sample["image"], sample["label"]
    size = width, max(1, round(width * label.shape[0] / label.shape[1]))

    def color(classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
        return colorize(cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST), palette)

    photo = cv2.resize(image.permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_AREA)
    found, maps = [("image", photo), ("truth", color(label.numpy(), dataset.palette))], {}
    for name, subject in subjects.items():
        maps[name] = prediction = subject.predict(image)
        found.append((name, color(prediction.numpy(), dataset.palette)))
        if not isinstance(subject.network, Teacher):
            kinds = kinds_of_pixels(prediction, maps.get(subject.teacher), label)
            found.append((f"{name}: errors", color(kinds, list(KINDS.values()))))
    return found
