"""What the folder of a run, or of a comparison, holds: config, log, state, time."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.schema import Experiment
from utils.config import load_config
from utils.console import RECORD_FILE

STARTED = re.compile(r"^(\S+ \S+) .*: (\d+) process\(es\) on (\w+), ")  # a line of train.log (train_kd.py)
WEIGHTS = ("student.safetensors", "best.pt", "last.pt")  # where a student is looked for, in this order
ALONE = "student_alone"  # the folder of the student alone in a comparison


@dataclass
class Run:
    """A training run, finished or not.

    Attributes:
        title: to show.
        folder: its work dir.
        config: its experiment.
        log: the entries of metrics.jsonl since the validation was changed for the last time.
        curve: (step, mIoU in per cent) of the validations among them.
        step: the last one in the log; 0 before the first entry.
        facts: versions, device and commit (env.txt).
        seconds: of work, from the times in train.log, without the pauses before it was resumed.
        processes: that ran at last, and ``device``, the type of their device; 0 and '' where train.log does not say it.
        notes: what is missing or needs to be known, in sentences.
    """

    title: str
    folder: Path
    config: Experiment
    log: list[dict] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    processes: int = 0
    device: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def weights(self) -> Path | None:
        """The file with its best student so far."""
        return next((path for name in WEIGHTS if (path := self.folder / name).is_file()), None)

    @property
    def state(self) -> str:
        finished = (self.folder / WEIGHTS[0]).is_file()
        return "finished" if finished else f"at step {self.step} of {self.config.schedule.max_iters or '?'}"


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of ``metrics.jsonl``; a run that writes, or was killed, may leave half of one at the end."""
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_protocol(log: list[dict]) -> tuple[list[dict], list[tuple[int, float]]]:
    """The entries since the validation was changed for the last time, because mIoUs before it do not compare.

    Returns:
        The entries, and (step, mIoU in per cent) of their validations; first the best one before, as measured again.
    """
    changes = [number for number, line in enumerate(log) if line.get("new_protocol")]
    entries = log[changes[-1] :] if changes else log
    measured = [(line["step"], best_miou(line)) for line in entries if line.get("miou") is not None]
    if changes and "best_miou" in entries[0]:
        measured.insert(0, (entries[0]["best_step"], entries[0]["best_miou"]))
    return entries, [(step, 100 * miou) for step, miou in measured]


def best_miou(line: dict) -> float:
    """mIoU (0..1) of a validation: of the student, or of the average of its weights where that is better."""
    return max(line["miou"], line.get("averaged_miou", 0.0))


def read_run(title: str, folder: Path) -> Run:
    """Reads a run; what is missing or damaged besides its config becomes a note.

    Raises:
        FileNotFoundError, ConfigError: the folder holds no config.py, or one that is wrong.
    """
    run = Run(title, folder, load_config(folder / "config.py", Experiment))
    try:
        whole = read_metrics(folder)
        run.log, run.curve = last_protocol(whole)
        run.step = whole[-1]["step"] if whole else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.notes.append(f"metrics.jsonl cannot be read ({error or type(error).__name__})")
    if run.log and run.log[0].get("new_protocol"):
        run.notes.append(
            f"resumed at step {run.log[0]['step']} with another evaluation or validation set; its mIoUs "
            "are those from there on, and that of its best network before, measured again."
        )
    if not run.log:
        run.notes.append("its log holds no entry: it has just begun, or was killed before its first entry")
    elif not run.curve:
        run.notes.append("its log holds no validation mIoU yet")
    if run.weights is None:
        run.notes.append("it has saved no network yet, so nothing of it can be measured or shown as a picture")
    elif run.state != "finished":
        run.notes.append(f"it is not finished ({run.state}); its figures are those of {run.weights.name}")
    environment = folder / "env.txt"
    if environment.is_file():
        run.facts = dict(line.split(": ", 1) for line in environment.read_text().splitlines() if ": " in line)
    run.seconds, run.processes, run.device = read_time(folder)
    return run


def read_time(folder: Path) -> tuple[float, int, str]:
    """Seconds of work, processes and the type of their device, from the times in ``train.log`` and its older files."""
    files = sorted(folder.glob(f"{RECORD_FILE}*"), reverse=True)
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    times, processes, device = [], 0, ""
    for line in lines:
        if started := STARTED.match(line):
            processes, device = int(started[2]), started[3]
        try:
            times.append((datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f"), bool(started)))
        except ValueError:  # a further line of a message
            continue
    return (
        sum((now - before).total_seconds() for (before, _), (now, new) in pairwise(times) if not new),
        processes,
        device,
    )


def expand(folder: Path) -> tuple[list[tuple[str, Path]], dict[str, Any] | None, list[str]]:
    """The runs in a folder given to the report: itself, or those of a comparison.

    Returns:
        (title, folder) of each run, of a comparison those of its first seed, the student alone first; the comparison's
        result.json, or None; and notes.
    """
    if not (folder / "runs").is_dir():
        return [(folder.name, folder)], None, []
    names = sorted((path.name for path in (folder / "runs").iterdir()), key=lambda name: (name != ALONE, name))
    result, notes = None, [f"{folder}: not finished, it has no result.json yet; there are no intervals"]
    if (folder / "result.json").is_file():
        result, notes = json.loads((folder / "result.json").read_text()), []
        names = list(result["methods"])
    found = []
    for name in names:
        seeds = (folder / "runs" / name.replace(" ", "_")).glob("seed_*/config.py")
        if first := min(seeds, key=lambda path: int(path.parent.name.split("_")[1]), default=None):
            found.append((name, first.parent))
    if not found:
        raise ValueError(f"{folder / 'runs'} holds no run yet (METHOD/seed_N/config.py): wait until one has begun")
    several = "one seed of each method is shown in all but the intervals: " + ", ".join(
        f"{title} {path.name.replace('_', ' ')}" for title, path in found
    )
    return found, result, [*notes, several]


def unique_titles(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """The titles, with their folder before those that occur twice."""
    titles = [title for title, _ in runs]
    return [title if titles.count(title) == 1 else str(path) for title, path in runs]
