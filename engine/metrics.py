"""Confusion matrix, and the metrics computed from it: IoU, accuracy and their means over classes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.names import OUTSIDE, VOID

CHUNK = 2**17  # pixels counted at a time on a CPU: they stay in its cache


def jsonable(value: Any) -> Any:
    """The value with None for each number that is not finite, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: jsonable(entry) for name, entry in value.items()}
    return [jsonable(entry) for entry in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class SegMetrics:
    """Metrics of one evaluation, as fractions in 0..1; nan where there are no pixels. Means are over values not nan."""

    per_class_iou: list[float]  # K, true positives / union; nan for a class that is neither in the truth nor predicted
    per_class_acc: list[float]  # K, true positives / pixels in the truth; nan for a class that is not in the truth
    miou: float
    macc: float
    pixel_accuracy: float  # share of the labelled pixels that are predicted correctly
    # K x K numbers of pixels, truth in rows, predictions in columns, without void.
    confusion_matrix: list[list[int]] = field(default_factory=list, repr=False)
    per_class_boundary_iou: list[float] | None = None  # K (``engine.boundary``); None: not measured
    boundary_miou: float | None = None

    @property
    def coverage(self) -> str:
        """'over 10 of 11 classes': how many ``miou`` is the mean of; '' for all."""
        measured = sum(not math.isnan(iou) for iou in self.per_class_iou)
        total = len(self.per_class_iou)
        return "" if measured == total else f"over {measured} of {total} classes"

    def to_dict(self) -> dict:
        """All measured metrics for strict JSON; nan becomes None."""
        return jsonable({name: value for name, value in asdict(self).items() if value is not None})

    def row(self, class_names: Sequence[str]) -> dict[str, float | int | str]:
        """One row of a table of images: column -> value, '' for nan."""
        labelled = sum(map(sum, self.confusion_matrix))
        ious = {f"iou {name}": iou for name, iou in zip(class_names, self.per_class_iou, strict=True)}
        values = {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "labelled_pixels": labelled, **ious}
        return {name: "" if math.isnan(value) else value for name, value in values.items()}

    def table(self, class_names: list[str]) -> str:
        """Aligned text in percent, one line for each class and the means below; '-' for nan.

        Raises:
            ValueError: the number of names is not the number of classes.
        """
        if len(class_names) != len(self.per_class_iou):
            raise ValueError(f"{len(class_names)} class names for {len(self.per_class_iou)} classes; expected one each")

        columns = [("IoU %", self.per_class_iou, self.miou), ("acc %", self.per_class_acc, self.macc)]
        if self.boundary_miou is not None:
            columns.insert(1, ("boundary IoU %", self.per_class_boundary_iou, self.boundary_miou))
        titles, per_class, means = zip(*columns, strict=True)
        mean, last = f"mean {self.coverage}".strip(), "pixel accuracy"
        width = max(len(name) for name in (*class_names, mean, last))

        def line(name: str, values: Sequence[float | str]) -> str:
            cells = (v if isinstance(v, str) else "-" if math.isnan(v) else f"{100 * v:.2f}" for v in values)
            pairs = zip(titles, cells, strict=True)
            return f"{name:<{width}}" + "".join(f"{cell:>{max(8, len(title) + 2)}}" for title, cell in pairs)

        head = line("class", titles)
        rule = "-" * len(head)
        rows = (line(name, values) for name, *values in zip(class_names, *per_class, strict=True))
        foot = [line(mean, means), line(last, [""] * (len(titles) - 1) + [self.pixel_accuracy])]
        return "\n".join([head, rule, *rows, rule, *foot])


class ConfusionMatrix:
    """Exact counts of (truth, prediction) pairs, kept on the device until :meth:`compute`.

    ``counts`` is (K + 2) x (K + 1), int64: K x K with the truth in rows, then a row for void, a row for labels out of
    range and a column for predictions out of range. Void is counted but enters no metric. Counts out of range are
    reported by :meth:`compute`, so that :meth:`update` never waits for the device.

    Raises:
        ValueError: K is not in 1..254 (labels are uint8, 254 is padding and 255 is void).
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        if not 1 <= num_classes <= OUTSIDE:
            raise ValueError(
                f"num_classes is {num_classes}; expected 1..{OUTSIDE}: labels are uint8, {OUTSIDE} is padding and "
                f"{VOID} is void"
            )
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Counts one map or a batch of maps.

        Args:
            prediction: H W or B H W, any integer type, classes 0..K-1.
            label: the same shape, any integer type, 0..K-1 or 255 for void.

        Raises:
            ValueError: shapes differ, or a tensor holds no integers.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, label {tuple(label.shape)}; expected one shape")
        for name, tensor in (("prediction", prediction), ("label", label)):
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
                raise ValueError(f"{name} is {tensor.dtype}; expected integer class indices (logits need argmax first)")
        if label.device.type == "cpu" and label.dtype == prediction.dtype == torch.uint8:
            self._count_bytes(prediction, label)
            return
        K = self.num_classes
        label, prediction = label.long(), prediction.long()
        row = torch.where((label >= 0) & (label < K), label, K + 1).masked_fill(label == VOID, K)
        column = torch.where((prediction >= 0) & (prediction < K), prediction, K)
        bins = (row * (K + 1) + column).flatten()
        # Not torch.bincount: it reads the largest bin from the GPU, and so waits for the GPU at every image.
        self.counts.view(-1).scatter_add_(0, bins, torch.ones_like(bins))

    def _count_bytes(self, prediction: Tensor, label: Tensor) -> None:
        """The same for uint8 maps on the CPU. It counts runs of equal pixels: neighbours are mostly equal."""
        K = self.num_classes
        row, column = np.full(256, K + 1), np.full(256, K)
        row[:K] = column[:K] = np.arange(K)
        row[VOID] = K
        row *= K + 1
        labels, predictions = label.reshape(-1).numpy(), prediction.reshape(-1).numpy()
        counts = np.zeros(self.counts.numel())  # float64: exact up to 2**53 pixels
        for start in range(0, labels.size, CHUNK):
            label, prediction = (pixels[start : start + CHUNK] for pixels in (labels, predictions))
            begins = np.ones(label.size, dtype=bool)
            np.not_equal(label[1:], label[:-1], out=begins[1:])
            begins[1:] |= prediction[1:] != prediction[:-1]
            begins = np.flatnonzero(begins)
            lengths = np.diff(begins, append=label.size)
            bins = row.take(label.take(begins)) + column.take(prediction.take(begins))
            counts += np.bincount(bins, lengths, minlength=counts.size)
        self.counts += torch.from_numpy(counts.astype(np.int64).reshape(self.counts.shape))

    def compute(self) -> SegMetrics:
        """The metrics; the only method that waits for the device.

        Raises:
            ValueError: a label or a prediction was out of range.
        """
        K = self.num_classes
        counts = self.counts.cpu()
        if bad := int(counts[K + 1].sum()):
            raise ValueError(
                f"{bad} label pixels are outside 0..{K - 1} and not {VOID} (void): check the dataset's id table"
            )
        if bad := int(counts[:, K].sum()):
            raise ValueError(
                f"{bad} predicted pixels are outside 0..{K - 1}: does the network have the dataset's {K} classes?"
            )
        matrix = counts[:K, :K].double()
        right, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        # 0 / 0 is nan, the value for a class without pixels.
        iou, acc = right / (truth + predicted - right), right / truth
        return SegMetrics(
            per_class_iou=iou.tolist(),
            per_class_acc=acc.tolist(),
            miou=iou.nanmean().item(),
            macc=acc.nanmean().item(),
            pixel_accuracy=(right.sum() / truth.sum()).item(),
            confusion_matrix=counts[:K, :K].tolist(),
        )
