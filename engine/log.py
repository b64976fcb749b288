"""What a run leaves behind: ``metrics.jsonl``, TensorBoard events, ``env.txt``, and what it said: ``train.log``."""

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
    """The log of one training run: metrics.jsonl, TensorBoard, and a line on the terminal for each entry.

    Args:
        work_dir: folder of the run.
        step: the step the run starts from. What an interrupted run logged after it is dropped: it will be logged again.
        validated: the last step whose validation is over; a later one will be logged again too.
        total: steps of the whole run.
        batch_size: global, for the rate.
        active: False on every rank but one: then nothing is written or said.
        go_on: an entry that cannot be written (a full disk) is said to be lost; otherwise it is an error (OSError).
    """

    def __init__(
        self, work_dir: str | Path, step: int, validated: int, total: int, batch_size: int, active: bool = True,
        go_on: bool = False,
    ):  # fmt: skip
        self.total, self.batch_size, self.active, self.go_on = total, batch_size, active, go_on
        self.clock, self.counted = time.perf_counter(), step  # the rate is measured from here on
        if not active:
            return
        path, kept = Path(work_dir) / "metrics.jsonl", []
        if path.is_file():
            # A killed run may leave half a line at the end, without its newline.
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
        """The loss and its terms at ``step``.

        ``norms`` are the terms' gradient norms on the student, if measured; ``scaling`` float16's loss scale and steps
        skipped.
        """
        if not self.active:
            return
        now = time.perf_counter()
        rate = (step - self.counted) * self.batch_size / (now - self.clock)
        self.clock, self.counted = now, step
        self._write(step, **terms, lr=lr, **scaling, **({"grad_norm": norms} if norms else {}))
        rates = {"images_per_s": rate, "peak_memory_mib": peak_memory_mib()}
        self._scalars(step, "train", {**terms, "lr": lr, **scaling, **rates})
        self._scalars(step, "weight", weights)
        self._scalars(step, "grad_norm", norms)
        self.board.flush()  # a process killed from here on loses nothing of what was said
        left = timedelta(seconds=round((self.total - step) * self.batch_size / rate))
        shown = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        scaled = "".join(f" {name} {value:g}" for name, value in scaling.items())
        say(f"step {step}/{self.total} {shown} lr {lr:.2e}{scaled} {rate:.1f} images/s {left} left")

    def skipped(self, step: int, count: int) -> None:
        """How often a training sample was replaced since the last entry, because it could not be read."""
        if self.active and count:
            self._write(step, skipped_samples=count)
            self._scalars(step, "train", {"skipped_samples": count})

    def teacher(self, step: int, miou: float) -> None:
        """The frozen teacher's mIoU on the validation set."""
        if self.active:
            self._write(step, teacher_miou=miou)
            say(f"teacher: val mIoU {miou:.4f}")

    def validation(
        self, step: int, metrics: SegMetrics, class_names: Sequence[str], best: Mapping, teacher_miou: float | None
    ) -> None:
        """The student's figures at ``step``, beside the best so far and the teacher's."""
        if not self.active:
            return
        overall = {"miou": metrics.miou, "macc": metrics.macc, "pixel_accuracy": metrics.pixel_accuracy}
        per_class = dict(zip(class_names, metrics.per_class_iou, strict=True))
        self._write(step, **overall, per_class_iou=per_class)
        self._scalars(step, "val", overall)
        self._scalars(step, "val_iou", per_class)
        self.board.flush()
        teacher = f", teacher {teacher_miou:.4f}" if teacher_miou is not None else ""
        say(f"step {step}/{self.total} val mIoU {metrics.miou:.4f}, best {best['miou']:.4f} at {best['step']}{teacher}")

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """H W 3 uint8 picture in TensorBoard."""
        if self.active:
            self._on_board(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.clock += time.perf_counter() - start

    def close(self) -> None:
        if self.active:
            self._on_board(SummaryWriter.close)
            self.file.close()

    def _write(self, step: int, **values: Any) -> None:
        """One JSON line; a number that is not finite (a class that does not occur) is null there."""
        rest = memoryview((json.dumps(_jsonable({"step": step, **values})) + "\n").encode())
        end = os.fstat(self.file.fileno()).st_size
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            os.truncate(self.file.fileno(), end)  # no half line before the next
            self._lost(f"cannot write step {step} to {self.file.name}", error)

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
            folder, self.board = self.board.log_dir, None  # its thread has ended: it would never write again
            self._lost(f"cannot write to {folder}, nor any more in this run", error)

    def _lost(self, what: str, error: OSError) -> None:
        if not self.go_on:
            raise OSError(f"{what} ({error.strerror or error}); what was there is as it was") from error
        say(f"WARNING: {what} ({error.strerror or error}); going on without it (checkpoint.on_save_error)")


def _step_of(line: str, path: Path) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {line!r} is not a JSON object with a step; remove the line to go on") from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return value


class SkippedSamples:
    """Collects over all ranks what the batches say of skipped samples (``skipped``, one text a sample, a line each).

    Args:
        total: samples in the data set.
        active: says what was skipped; True on one rank alone.
    """

    def __init__(self, total: int, active: bool):
        self.total, self.active = total, active
        self.known: dict[str, None] = {}  # what was reported, in order; the same on all ranks
        self._new: list[str] = []  # a text for each sample replaced

    def note(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Remembers what this rank's batches say."""
        self._new += [text for batch in batches for text in batch["skipped"] if text]

    def report(self) -> int:
        """Says each sample that is new, once; all ranks must call.

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
                f"{len(self.known)} of the {self.total} training samples cannot be read, more than half: mend the data "
                f"(python scripts/prepare_lists.py --config CONFIG lists what is wrong); the last is {line}"
            )
        return len(replaced)
