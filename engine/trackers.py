"""Where a run is followed: TensorBoard, Weights & Biases, MLflow. None of them can stop the run."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from configs.schema import Experiment
from utils.config import ConfigError, dump_config
from utils.console import say
from utils.files import write_atomically

IDS = "trackers.json"  # in the work dir: the id of the run at each tracker that gives one
PROJECT = "hmkd"  # where the trackers' own environment variables name none
LAST_FAILURE = 3  # a tracker that has failed so often is left out


class Tracker(Protocol):
    """One tracker of a run. Names are ``group/name``.

    Args:
        work_dir: folder of the run.
        step: the step that the run starts from.
        config: of the run.
        known: id of the tracked run that a resumed run continues; None: a new one.

    Attributes:
        id: of the tracked run; None if its files in the work dir are enough to continue.
    """

    id: str | None

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in ``tensorboard/``; those of an interrupted run after ``step`` are hidden."""

    id = None

    def __init__(self, work_dir: Path, step: int, config: Experiment | None, known: str | None):
        self.board = SummaryWriter(str(work_dir / "tensorboard"), purge_step=step + 1)
        self.board.add_custom_scalars_multilinechart(["val/miou", "val/teacher_miou"], "val", "mIoU of both")
        if config is not None:
            self.board.add_text("config", indent(dump_config(config), "    "), step)
            for summary in hparams(flat(config.model_dump()), {"val/miou": 0.0}):
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
    """Weights & Biases. Its environment variables hold (WANDB_MODE=offline, WANDB_PROJECT)."""

    def __init__(self, work_dir: Path, step: int, config: Experiment | None, known: str | None):
        import wandb

        self.id, self.image = known or uuid4().hex, wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=title(work_dir), dir=str(work_dir),
            id=self.id, resume="allow", reinit="finish_previous",
            config=None if config is None else config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", login_timeout=30, finish_timeout=60),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")  # its own steps cannot be taken again by a resumed run
        say(f"wandb: {self.run.dir if self.run.offline else self.run.url}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({name: self.image(image), "step": step})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """The server of MLFLOW_TRACKING_URI; without it, files in ``mlflow/``."""

    def __init__(self, work_dir: Path, step: int, config: Experiment | None, known: str | None):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for it before it writes files
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # training waits for the answer
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (work_dir / "mlflow").resolve().as_uri()
        self.client, self.metric, self.id = MlflowClient(tracking_uri=uri), Metric, known
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            where = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            self.id = self.client.create_run(where, run_name=title(work_dir)).info.run_id
        self.client.update_run(self.id, status="RUNNING")
        if config is not None:
            self.client.log_text(self.id, dump_config(config), "config.py")
        if config is not None and known is None:  # a parameter cannot change
            params = [Param(self.name(key), str(value)) for key, value in flat(config.model_dump()).items()]
            for start in range(0, len(params), 100):  # as many as a server takes at once
                self.client.log_batch(self.id, params=params[start : start + 100])
        say(f"mlflow: run {self.id} at {uri}")

    @staticmethod
    def name(name: str) -> str:
        """The name with the characters that MLflow allows."""
        return re.sub(r"[^\w\-. /]", "_", name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.id, [self.metric(self.name(key), values[key], now, step) for key in values])

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.client.log_image(self.id, image, f"{self.name(name)}/{step}.png")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Trackers:
    """The trackers of a run. An error of one is printed once, and what it loses is counted.

    Args:
        names: of ``TRACKERS``.
        work_dir, step, config: as for ``Tracker``.
    """

    def __init__(self, names: Sequence[str], work_dir: Path, step: int, config: Experiment | None = None):
        self.names = names
        self.lost: Counter[str] = Counter()  # entries, by tracker
        self.trackers: dict[str, Tracker] = {}
        file = work_dir / IDS
        known = json.loads(file.read_text()) if step and file.is_file() else {}
        for name in names:
            try:
                self.trackers[name] = TRACKERS[name](work_dir, step, config, known.get(name))
            except Exception as error:  # of another's package: it may raise anything
                self._lose(name, error)
        ids = known | {name: tracker.id for name, tracker in self.trackers.items() if tracker.id}
        if ids:
            write_atomically(file, json.dumps(ids).encode())

    def send(self, method: str, *arguments: Any) -> None:
        """Calls a method of every tracker."""
        for name in self.names:
            if name not in self.trackers or self.lost[name] >= LAST_FAILURE:
                self.lost[name] += 1
                continue
            try:
                getattr(self.trackers[name], method)(*arguments)
            except Exception as error:
                self._lose(name, error)

    def close(self, finished: bool) -> None:
        """Ends the tracked runs; ``finished``: as finished and not as stopped."""
        lost = +self.lost
        self.send("close", finished)
        for name, count in lost.items():
            say(f"WARNING: {name} failed to take {count} entries of this run; metrics.jsonl has all its figures")

    def _lose(self, name: str, error: Exception) -> None:
        if not self.lost[name]:
            say(f"WARNING: log.trackers: {name} failed, and the run continues: {type(error).__name__}: {error}")
        self.lost[name] += 1


def check_trackers(names: Sequence[str], source: str) -> None:
    """Raises ConfigError, with the command that installs it, if the package of a tracker is missing."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"{source}: log.trackers: the package {name} is not installed: pip install '.[trackers]', or remove "
                f"{name!r} from log.trackers"
            )


def title(work_dir: Path) -> str:
    """Name of a run: its folder and the folder of that."""
    return "/".join(work_dir.resolve().parts[-2:])


def flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """``{'a': {'b': 1, 'c': None}}`` -> ``{'a.b': 1, 'a.c': 'None'}``"""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
