"""What a run leaves behind: ``metrics.jsonl``, TensorBoard events, ``env.txt``, and what it said: ``train.log``."""

import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.files import write_atomically
from utils.metrics import SegMetrics

PACKAGES = ("torch", "torchvision", "timm", "mmengine-lite", "pydantic", "opencv-python-headless", "numpy")
RECORD = logging.getLogger("hmkd")  # of what is said; a run keeps it in a file
RECORD.setLevel(logging.INFO)
RECORD.propagate = False
RECORD.addHandler(logging.NullHandler())
RECORD_FILE, RECORD_BYTES, OLD_RECORDS = "train.log", 10 * 2**20, 3


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


def peak_memory_mib() -> float:
    """Peak memory in MiB: the GPU's allocated tensors, or else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def say(message: str) -> None:
    """A line on the terminal that does not break a progress bar; a run keeps it too (``recorded_in``)."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()
    RECORD.info(message)


@contextmanager
def recorded_in(work_dir: Path) -> Iterator[None]:
    """What is said, and the error that ends it, goes to ``train.log`` too, with the time; large files are put aside."""
    path = work_dir / RECORD_FILE
    handler = RotatingFileHandler(path, maxBytes=RECORD_BYTES, backupCount=OLD_RECORDS, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.handleError = lambda record: None  # a full disk: the terminal has it
    RECORD.addHandler(handler)
    try:
        yield
    except BaseException as error:
        if path.is_file():  # a run that never began leaves nothing
            RECORD.info(f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        RECORD.removeHandler(handler)
        handler.close()


def reason(error: Exception) -> str:
    """What an error says; of one that a loader's worker met, without the worker's traceback, which comes before it."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return re.split(r"^[\w.]*Error: ", text, flags=re.MULTILINE)[-1].strip()


def progress_bar(total: int, initial: int, description: str, active: bool) -> tqdm:
    """A bar with rate and ETA; silent where the output is not a terminal, so that log files stay readable."""
    return tqdm(
        total=total, initial=initial, desc=description, unit="it", dynamic_ncols=True, smoothing=0.05,
        disable=not active or not sys.stderr.isatty(),
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Versions, device and commit: what a result depends on beside its config."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    facts["cuda"] = torch.version.cuda or "none"
    facts["commit"] = _git("rev-parse", "HEAD") or "unknown"
    if _git("status", "--porcelain"):
        facts["commit"] += " with uncommitted changes"
    return facts


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
