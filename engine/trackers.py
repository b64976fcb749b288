"""Where a run is followed: TensorBoard, Weights & Biases, MLflow. None of them can stop the run.

Each has ``scalars(step, values)`` and ``picture(step, name, image)`` with names as ``group/name``, and
``close(finished)``. One that continues a tracked run by its ``id`` gets the id of the interrupted run as ``known``.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any
from uuid import uuid4

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils.config import ConfigError
from utils.console import say
from utils.files import write_atomically

IDS = "trackers.json"  # in the work dir: the ids of the tracked runs
PROJECT = "hmkd"  # where the trackers' own environment variables name none
LAST_FAILURE = 3  # a tracker that has failed so often is left out


class TensorBoard:
    """Event files in ``tensorboard/``; those of an interrupted run after ``step`` are hidden."""

    def __init__(self, work_dir: Path, step: int, config: Mapping[str, Any], known: str | None):
        self.board = SummaryWriter(str(work_dir / "tensorboard"), purge_step=step + 1)
        self.board.add_custom_scalars_multilinechart(["val/miou", "val/teacher_miou"], "val", "student and teacher")
        self.board.add_text("config", indent(json.dumps(config, indent=2), "    "), step)
        for summary in hparams(flat(config), {"val/miou": 0.0}):
            self.board.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()  # if the process is killed later, they are not lost

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.board.add_image(name, image, step, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self.board.close()


class WandB:
    """Weights & Biases; its environment variables hold, as WANDB_MODE=offline."""

    def __init__(self, work_dir: Path, step: int, config: Mapping[str, Any], known: str | None):
        import wandb

        self.id, self.image = known or uuid4().hex, wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=title(work_dir), dir=str(work_dir), config=config,
            id=self.id, resume="allow", reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", login_timeout=30, finish_timeout=60),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")  # W&B's own steps cannot be repeated by a resumed run
        say(f"wandb: {self.run.dir if self.run.offline else self.run.url}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({name: self.image(image), "step": step})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """The server of MLFLOW_TRACKING_URI; without it, files in ``mlflow/``."""

    def __init__(self, work_dir: Path, step: int, config: Mapping[str, Any], known: str | None):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for it before it writes files
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # training waits for the answer
        import mlflow

        self.mlflow = mlflow
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or (work_dir / "mlflow").resolve().as_uri())
        mlflow.end_run("FAILED")  # of a run that died in this process
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.id = mlflow.start_run(known, run_name=title(work_dir)).info.run_id
        mlflow.log_dict(config, "config.json")
        if known is None:  # a parameter cannot change
            mlflow.log_params({allowed(name): value for name, value in flat(config).items()})
        say(f"mlflow: run {self.id} at {mlflow.get_tracking_uri()}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics({allowed(name): value for name, value in values.items()}, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.mlflow.log_image(image, f"{allowed(name)}/{step}.png")

    def close(self, finished: bool) -> None:
        self.mlflow.end_run("FINISHED" if finished else "KILLED")


TRACKERS: dict[str, Callable] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Trackers:
    """The trackers of a run. An error of one is printed once, and what it loses is counted.

    Args:
        names: of ``TRACKERS``.
        work_dir: folder of the run.
        step: the step that the run starts from; 0: a new tracked run.
        config: of the run, in values of JSON.
    """

    def __init__(self, names: Sequence[str], work_dir: Path, step: int, config: Mapping[str, Any]):
        self.lost: Counter[str] = Counter()  # entries, by tracker
        file = work_dir / IDS
        known = json.loads(file.read_text()) if step and file.is_file() else {}
        self.trackers = {
            name: self._attempt(name, TRACKERS[name], work_dir, step, config, known.get(name)) for name in names
        }  # None: it did not start
        ids = known | {name: tracker.id for name, tracker in self.trackers.items() if hasattr(tracker, "id")}
        if ids:
            write_atomically(file, json.dumps(ids).encode())

    def send(self, method: str, *arguments: Any) -> None:
        """Calls a method of every tracker."""
        for name, tracker in self.trackers.items():
            if tracker is None or self.lost[name] >= LAST_FAILURE:
                self.lost[name] += 1
            else:
                self._attempt(name, getattr(tracker, method), *arguments)

    def close(self, finished: bool) -> None:
        """Ends the tracked runs; ``finished``: as finished and not as stopped."""
        lost = +self.lost
        self.send("close", finished)
        for name, count in lost.items():
            say(f"WARNING: {name} failed to take {count} entries of this run; metrics.jsonl has all its figures")

    def _attempt(self, name: str, work: Callable, *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:  # of another's package: it may raise anything
            if not self.lost[name]:
                say(f"WARNING: log.trackers: {name} failed, and the run continues: {type(error).__name__}: {error}")
            self.lost[name] += 1


def check_trackers(names: Sequence[str], source: str) -> None:
    """Raises ConfigError, with the command that installs it, if the package of a tracker is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError(
            f"{source}: log.trackers: the package {missing[0]} is not installed: pip install '.[trackers]', or remove "
            f"{missing[0]!r} from log.trackers"
        )


def title(work_dir: Path) -> str:
    """Name of a run: its folder and the folder that holds it."""
    return "/".join(work_dir.resolve().parts[-2:])


def allowed(name: str) -> str:
    """The name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """``{'a': {'b': 1, 'c': None}}`` -> ``{'a.b': 1, 'a.c': 'None'}``"""
    found = {}
    for key, value in values.items():
        plain = value if isinstance(value, bool | int | float | str) else str(value)
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": plain}
    return found
