"""What the folder of a run, or of a comparison, holds: config, log, state, time."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from configs.schema import Experiment
from utils.config import load_config
from utils.console import RECORD_FILE

# Lines of train.log: the time, and in the first of each process what train_kd.py says of the device.
TIMED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?:.*: (\d+) process\(es\) on (\w+), )?")
ALONE = "student_alone"  # the folder of the student alone in a comparison
WEIGHTS = ("student.safetensors", "best.pt", "last.pt")  # the best student so far is in the first that exists


@dataclass
class Run:
    """A training run, finished or not; what is missing or damaged is in ``notes``.

    ``log`` has the entries since the validation was changed for the last time, ``curve`` their (step, mIoU in per
    cent), ``facts`` the environment, ``seconds`` the time of work, ``result`` the figures of the comparison.
    """

    title: str
    folder: Path
    config: Experiment
    log: list[dict] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    processes: int = 0
    device: str = "not known"
    notes: list[str] = field(default_factory=list)
    result: dict | None = None

    @property
    def state(self) -> str:
        step = self.log[-1]["step"] if self.log else 0
        finished = (self.folder / WEIGHTS[0]).is_file()
        return "finished" if finished else f"at step {step} of {self.config.schedule.max_iters}"

    @property
    def cost(self) -> float:
        """Hours times processes."""
        return self.seconds * self.processes / 3600

    @property
    def weights(self) -> Path | None:
        return next((path for name in WEIGHTS if (path := self.folder / name).is_file()), None)


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of ``metrics.jsonl``: a run that writes, or was killed, may leave half of one at the end."""
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
    """Reads a run.

    Raises:
        FileNotFoundError, ConfigError: the folder holds no config.py, or one that is wrong.
    """
    run = Run(title, folder, load_config(folder / "config.py", Experiment))
    try:
        run.log, run.curve = last_protocol(read_metrics(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.notes.append(f"metrics.jsonl cannot be read: {error!r}")
    if not run.log:
        run.notes.append("its log is empty: it has just begun, or was killed before its first entry")
    elif run.log[0].get("new_protocol"):
        run.notes.append(
            f"resumed at step {run.log[0]['step']} with another evaluation or validation set; its mIoUs "
            "are those from there on, and that of its best network before, measured again."
        )
    if run.weights is None:
        run.notes.append("it has saved no network yet, so nothing of it can be measured or shown as a picture")
    elif run.state != "finished":
        run.notes.append(f"it is not finished: its network is that of {run.weights.name}")
    if (folder / "env.txt").is_file():
        lines = (folder / "env.txt").read_text().splitlines()
        run.facts = {key: value for key, _, value in (line.partition(": ") for line in lines)}
    before = None
    for file in sorted(folder.glob(f"{RECORD_FILE}*"), reverse=True):  # a higher number is older
        for line in filter(None, map(TIMED.match, file.read_text(errors="replace").splitlines())):
            now = datetime.strptime(line[1], "%Y-%m-%d %H:%M:%S,%f")
            if line[2]:  # a process has started: it ends a pause
                run.processes, run.device = int(line[2]), line[3]
            elif before is not None:
                run.seconds += (now - before).total_seconds()
            before = now
    return run


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or one run of each method of a comparison, the first of them with its ``result``."""
    if not (folder / "runs").is_dir():
        if not (folder / "config.py").is_file():
            raise ValueError(f"{folder}: expected the work dir of a run (config.py), or --out of compare.py (runs/)")
        return [read_run(folder.name, folder)]
    file, names = folder / "result.json", sorted(path.name for path in (folder / "runs").iterdir())
    result = json.loads(file.read_text()) if file.is_file() else None
    names = list(result["methods"]) if result else sorted(names, key=lambda name: name != ALONE)
    runs = []
    for name in names:
        seeds = (folder / "runs" / name.replace(" ", "_")).glob("seed_*/config.py")
        if first := min(seeds, key=lambda path: int(path.parent.name.removeprefix("seed_")), default=None):
            runs.append(read_run(name.replace(ALONE, "student alone"), first.parent))
    if not runs:
        raise ValueError(f"{folder / 'runs'} holds no run yet (METHOD/seed_N/config.py): wait until one has begun")
    runs[0].result = result
    if result is None:
        runs[0].notes.append(f"{folder} has no result.json yet, so there are no intervals")
    return runs
