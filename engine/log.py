"""The log of a training run: ``metrics.jsonl``, TensorBoard events and lines on the terminal."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from engine.metrics import SegMetrics
from utils.console import peak_memory_mib, say
from utils.distributed import gather_objects
from utils.files import write_atomically


class RunLog:
    """The log of one training run: ``metrics.jsonl``, TensorBoard, and a line on the terminal for each entry.

    Args:
        work_dir: folder of the run.
        step: the step that the run starts from. Entries of an interrupted run after it are removed, because the steps
            are taken again.
        validated: the last step with a complete validation; entries of later validations are removed too.
        total: steps of the whole run.
        images: in a step, over all ranks; for images per second.
        active: True on rank 0 only; the other ranks write and print nothing.
        tolerate_errors: if an entry cannot be written (a full disk), print a warning instead of raising OSError.
    """

    def __init__(
        self, work_dir: str | Path, step: int, validated: int, total: int, images: int, active: bool = True,
        tolerate_errors: bool = False,
    ):  # fmt: skip
        self.total, self.images, self.active = total, images, active
        self.tolerate_errors = tolerate_errors
        self.clock, self.counted = time.perf_counter(), step  # start of the interval for images per second
        if not active:
            return
        path, kept = Path(work_dir) / "metrics.jsonl", []
        if path.is_file():
            # A killed run may leave half of a line at the end of the file, without a newline.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in whole if _step_of(line, path) <= (validated if '"miou"' in line else step)]
        write_atomically(path, "".join(kept if step else []).encode())
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
        self.board: SummaryWriter | None = SummaryWriter(str(Path(work_dir) / "tensorboard"), purge_step=step + 1)

    def training(
        self,
        step: int,
        terms: Mapping[str, float],
        weights: Mapping[str, float],
        norms: Mapping[str, float],
        lr: float,
        scaling: Mapping[str, float],
    ) -> None:
        """Logs a training step.

        Args:
            step: number of the step.
            terms: the loss and its terms.
            weights: of the terms.
            norms: gradient norms of the terms on the student; empty if they were not measured.
            lr: learning rate of the backbone.
            scaling: in float16, the loss scale and the number of skipped steps; otherwise empty.
        """
        if not self.active:
            return
        now = time.perf_counter()
        rate = (step - self.counted) * self.images / (now - self.clock)
        self.clock, self.counted = now, step
        self._write(step, **terms, lr=lr, **scaling, **({"grad_norm": norms} if norms else {}))
        rates = {"images_per_s": rate, "peak_memory_mib": peak_memory_mib()}
        self._scalars(step, "train", {**terms, "lr": lr, **scaling, **rates})
        self._scalars(step, "weight", weights)
        self._scalars(step, "grad_norm", norms)
        self.board.flush()  # if the process is killed later, this entry is not lost
        left = timedelta(seconds=round((self.total - step) * self.images / rate))
        shown = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        scaled = "".join(f" {name} {value:g}" for name, value in scaling.items())
        say(f"step {step}/{self.total} {shown} lr {lr:.2e}{scaled} {rate:.1f} images/s {left} left")

    def skipped(self, step: int, count: int) -> None:
        """Logs how many training samples could not be read and were replaced since the last entry."""
        if self.active and count:
            self._write(step, skipped_samples=count)
            self._scalars(step, "train", {"skipped_samples": count})

    def teacher(self, step: int, miou: float | None) -> None:
        """Logs the teacher's mIoU on the validation set; None: it has no logits."""
        if self.active and miou is None:
            say("teacher: it has features and no logits, so there is no mIoU to verify")
        elif self.active:
            self._write(step, teacher_miou=miou)
            say(f"teacher: val mIoU {miou:.2%}")

    def validation(
        self,
        step: int,
        metrics: SegMetrics,
        class_names: Sequence[str],
        best: Mapping[str, Any],
        teacher_miou: float | None,
        averaged_miou: float | None = None,
    ) -> None:
        """Logs a validation; the terminal also shows the best mIoU so far and the teacher's.

        Args:
            step: number of the step.
            metrics: the student's.
            class_names: of the data.
            best: ``step`` and ``miou`` of the best student so far; ``averaged`` if that has averaged weights.
            teacher_miou: the teacher's, if it was verified.
            averaged_miou: of the student's averaged weights, if there are any.
        """
        if not self.active:
            return
        overall = {"miou": metrics.miou, "macc": metrics.macc, "pixel_accuracy": metrics.pixel_accuracy}
        if averaged_miou is not None:
            overall["averaged_miou"] = averaged_miou
        per_class = dict(zip(class_names, metrics.per_class_iou, strict=True))
        self._write(step, **overall, per_class_iou=per_class)
        self._scalars(step, "val", overall)
        self._scalars(step, "val_iou", per_class)
        self.board.flush()
        teacher = f", teacher {teacher_miou:.2%}" if teacher_miou is not None else ""
        miou = f"{metrics.miou:.2%} {metrics.coverage}".strip()
        averaged = f", averaged weights {averaged_miou:.2%}" if averaged_miou is not None else ""
        which = " (averaged weights)" if "averaged" in best else ""
        best_so_far = f"best {best['miou']:.2%} at {best['step']}{which}"
        say(f"step {step}/{self.total} val mIoU {miou}{averaged}, {best_so_far}{teacher}")

    def new_protocol(self, step: int, best: Mapping) -> None:
        """Logs that the validations after ``step`` are measured in another way or on other data than those before it.

        ``best`` is the best student so far, measured anew; its step is 0 if there is none.
        """
        if self.active:
            # Not 'miou', which marks a validation.
            measured = {"best_step": best["step"], "best_miou": best["miou"]} if best["step"] else {}
            self._write(step, new_protocol=True, **measured)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture, H W 3 uint8, to TensorBoard."""
        if self.active:
            self._on_board(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.clock += time.perf_counter() - start

    def close(self) -> None:
        if self.active:
            self._on_board(SummaryWriter.close)
            self.file.close()

    def _write(self, step: int, **values: Any) -> None:
        """Writes one JSON line. A number that is not finite (for a class that does not occur) becomes null."""
        rest = memoryview((json.dumps(_jsonable({"step": step, **values})) + "\n").encode())
        end = os.fstat(self.file.fileno()).st_size
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            os.truncate(self.file.fileno(), end)  # no half line before the next one
            self._handle_error(f"cannot write step {step} to {self.file.name}", error)

    def _scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        def add(board: SummaryWriter) -> None:
            for name, value in values.items():
                board.add_scalar(f"{prefix}/{name}", value, step)

        self._on_board(add)

    def _on_board(self, write: Callable[[SummaryWriter], None]) -> None:
        if self.board is None:
            return
        try:
            write(self.board)
        except OSError as error:
            folder, self.board = self.board.log_dir, None  # its thread has ended and cannot write again
            self._handle_error(f"cannot write to {folder}; this run writes no more events", error)

    def _handle_error(self, what: str, error: OSError) -> None:
        if not self.tolerate_errors:
            raise OSError(f"{what} ({error.strerror or error}); the earlier entries are unchanged") from error
        say(f"WARNING: {what} ({error.strerror or error}); the run continues without it (checkpoint.on_save_error)")


def _step_of(line: str, path: Path) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {line!r} is not a JSON object with a step; remove the line to resume") from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return value


class SkippedSamples:
    """Collects the messages of all ranks about training samples that were skipped (``skipped`` in a batch).

    Args:
        total: samples in the data set.
        active: prints the messages; True on one rank only.
    """

    def __init__(self, total: int, active: bool):
        self.total, self.active = total, active
        self.known: dict[str, None] = {}  # lines reported so far, in order; the same on all ranks
        self._new: list[str] = []  # one text for each replaced sample, with a line for each skipped one

    def note(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Remembers the messages in this rank's batches."""
        self._new += [text for batch in batches for text in batch["skipped"] if text]

    def report(self) -> int:
        """Prints each new message once; all ranks must call it.

        Returns:
            How many samples were replaced since the last report, on all ranks.

        Raises:
            ValueError: on every rank, if more than half of the data set cannot be read.
        """
        replaced, self._new = sum(gather_objects(self._new), []), []
        for line in "\n".join(replaced).splitlines():
            if line not in self.known:
                self.known[line] = None
                if self.active:
                    say(f"skipped ({len(self.known)} of {self.total} samples so far): {line}")
        if 2 * len(self.known) > self.total:
            raise ValueError(
                f"{len(self.known)} of the {self.total} training samples cannot be read, more than half: fix the data "
                f"(python scripts/prepare_lists.py --config CONFIG lists what is wrong); the last is {line}"
            )
        return len(replaced)
