"""The log of a training run: ``metrics.jsonl``, its trackers, lines and a progress bar on the terminal."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.metrics import SegMetrics, jsonable
from engine.trackers import Trackers
from utils.console import peak_memory_mib, say
from utils.distributed import gather_objects
from utils.files import write_atomically


class RunLog:
    """The log of one training run: ``metrics.jsonl``, its trackers, a progress bar, and a line for each entry.

    Args:
        work_dir: folder of the run.
        step: the step that the run starts from. Entries of an interrupted run after it are removed, because the steps
            are taken again.
        validated: the last step with a complete validation; entries of later validations are removed too.
        total: steps of the whole run.
        images: in a step, over all ranks; for images per second.
        active: True on rank 0 only; the other ranks write and print nothing.
        tolerate_errors: if an entry cannot be written (a full disk), print a warning instead of raising OSError.
        trackers: where else the run is logged (``engine.trackers``).
        config: of the run, in values of JSON, for the trackers.
        interval: steps between two validations; 0: there is one, at the end.
        epoch: steps of an epoch; None: not shown.
        best: mIoU of the best student so far; negative if there is none.
    """

    def __init__(
        self, work_dir: str | Path, step: int, validated: int, total: int, images: int, active: bool = True,
        tolerate_errors: bool = False, trackers: Sequence[str] = ("tensorboard",), config: Mapping[str, Any] = {},
        interval: int = 0, epoch: float | None = None, best: float = -1.0,
    ):  # fmt: skip
        self.total, self.images, self.active = total, images, active
        self.tolerate_errors, self.validated, self.interval = tolerate_errors, validated, interval or total
        self.epoch, self.best = epoch, best
        self.validation_seconds: float | None = None  # that the last one took
        self.bar = tqdm(
            total=total, initial=step, desc=Path(work_dir).name, dynamic_ncols=True, disable=None if active else True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )  # fmt: skip
        if active:
            self._open(Path(work_dir), step, trackers, config)
        self.clock, self.counted = time.perf_counter(), step  # start of the interval for images per second
        self.began = self.clock, step

    def _open(self, work_dir: Path, step: int, trackers: Sequence[str], config: Mapping[str, Any]) -> None:
        path, kept, validated = work_dir / "metrics.jsonl", [], self.validated
        if path.is_file():
            # A killed run may leave half of a line at the end of the file, without a newline.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in whole if _step_of(line, path) <= (validated if '"miou"' in line else step)]
        write_atomically(path, "".join(kept if step else []).encode())
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
        self.trackers = Trackers(trackers, work_dir, step, config)

    def progress(self, step: int, loss: float) -> None:
        """Moves the bar to ``step``, whose loss is shown."""
        if not self.bar.disable:
            miou = f"mIoU {self.best:.2%}, " if self.best >= 0 else ""
            self.bar.set_postfix_str(f"{self._epoch(step)}loss {loss:.4f}, {miou}{self._left(step)}", refresh=False)
            self.bar.update()

    def _epoch(self, step: int) -> str:
        return "" if self.epoch is None else f"epoch {step / self.epoch:.2f}/{self.total / self.epoch:.2f}, "

    def _left(self, step: int) -> str:
        """Time until the end of the run, if its steps and validations take as long as so far."""
        clock, first = self.began
        seconds = (self.total - step) * (time.perf_counter() - clock) / max(1, step - first)
        to_come = -(-self.total // self.interval) - self.validated // self.interval
        least = "at least " if to_come and self.validation_seconds is None else ""  # none was measured yet
        return f"{least}{timedelta(seconds=round(seconds + to_come * (self.validation_seconds or 0)))} left"

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
        figures = {**terms, "lr": lr, **scaling, "images_per_s": rate, "peak_memory_mib": peak_memory_mib()}
        self._track(step, train=figures, weight=weights, grad_norm=norms)
        shown = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        scaled = "".join(f" {name} {value:g}" for name, value in scaling.items())
        speed = f"{rate:.1f} images/s {self._epoch(step)}{self._left(step)}"
        say(f"step {step}/{self.total} {shown} lr {lr:.2e}{scaled} {speed}")

    def skipped(self, step: int, count: int) -> None:
        """Logs how many training samples could not be read and were replaced since the last entry."""
        if self.active and count:
            self._write(step, skipped_samples=count)
            self._track(step, train={"skipped_samples": count})

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
        line = {} if teacher_miou is None else {"teacher_miou": teacher_miou}  # beside the student's curve
        self._track(step, val={**overall, **line}, val_iou=per_class)
        self.validated, self.best = step, best["miou"]
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
        """Adds a picture, H W 3 uint8, to the trackers."""
        if self.active:
            self.trackers.send("picture", step, name, image)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For a validation: the time inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.validation_seconds = time.perf_counter() - start
        self.clock += self.validation_seconds
        self.began = self.began[0] + self.validation_seconds, self.began[1]

    def close(self, finished: bool = True) -> None:
        """Ends the log, of a run that is ``finished`` or was stopped."""
        self.bar.close()
        if self.active:
            self.trackers.close(finished)
            self.file.close()

    def _write(self, step: int, **values: Any) -> None:
        """Writes one JSON line. A number that is not finite (for a class that does not occur) becomes null."""
        rest = memoryview((json.dumps(jsonable({"step": step, **values})) + "\n").encode())
        end = os.fstat(self.file.fileno()).st_size
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            os.truncate(self.file.fileno(), end)  # no half line before the next one
            what = f"cannot write step {step} to {self.file.name} ({error.strerror or error})"
            if not self.tolerate_errors:
                raise OSError(f"{what}; the earlier entries are unchanged") from error
            say(f"WARNING: {what}; the run continues without it (checkpoint.on_save_error)")

    def _track(self, step: int, **groups: Mapping[str, float]) -> None:
        named = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        self.trackers.send("scalars", step, named)


def _step_of(line: str, path: Path) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {line!r} is not a JSON object with a step; remove the line to resume") from error


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
