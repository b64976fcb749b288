"""One training run: it builds the parts from the config, saves their state and resumes from it."""

from pathlib import Path

import torch

from configs.schema import Experiment
from datasets import make_loader
from datasets.samplers import PositionBatches
from engine.build import build_distiller, build_split, build_student, build_train_stream
from engine.checkpoint import checkpoint_to_resume, load_checkpoint, prune_checkpoints, save_checkpoint
from engine.evaluation import evaluate
from engine.metrics import SegMetrics
from engine.report import network_table
from engine.teacher import Teacher, build_teacher, build_teacher_cache
from engine.trainer import Trainer
from models import SegModel
from utils.config import ConfigError, changed_values, config_errors, validate
from utils.console import environment, say
from utils.distributed import World, barrier, broadcast_buffers, broadcast_from_main

NONE_YET = {"step": 0, "miou": -1.0}  # the best student before the first validation
# These may change when a run is resumed, because they do not change what is learned: where files are, how often the run
# evaluates, saves and logs, and how the work is divided.
FREE_TO_CHANGE = (
    "custom_imports", "eval.", "checkpoint.", "log.", "data.workers", "data.root", "data.packed", "data.on_bad_sample",
    "student.pretrained", "teacher.shard", "train.accumulate", "train.compile", "train.timeout",
)  # fmt: skip


class Run:
    """One training run: the trainer, its data, the results so far and the folder.

    Args:
        config: the experiment.
        source: the config file, which errors name.
        work_dir: folder of the run.
        world: this process and its peers.
        resume: path and state of the checkpoint to resume from; None: a new run.
        force: resume even if the config has changed.
        dry: for a dry run: no weights are loaded.

    Raises:
        ConfigError: data, networks, method or weights do not fit the config.
        ValueError: as ``restore``.
    """

    def __init__(
        self,
        config: Experiment,
        source: str,
        work_dir: Path,
        world: World,
        resume: tuple[Path, dict] | None = None,
        force: bool = False,
        dry: bool = False,
    ):
        self.config, self.work_dir, self.world = config, work_dir, world
        with config_errors(source, "train.batch_size"):
            self.positions(start=0, stop=0)
        self.stream = build_train_stream(config, source)
        self.validation = build_split(config, source, "val")
        if any(label is None for _, label in self.validation.files):
            raise ConfigError(f"{source}: data.val_list: {config.data.val_list} has images without labels")
        torch.manual_seed(config.train.seed)
        # The student first: its random weights are the same with and without a teacher.
        class_names, fresh = self.validation.class_names, resume is None and not dry
        student, loaded = build_student(config, source, class_names, pretrained=fresh)
        teacher = build_teacher(config, source, class_names, pretrained=not dry)
        self.loaded = [report for report in (loaded, teacher and teacher.loaded) if report is not None]
        networks = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
        self.overview = network_table(networks, config.data.crop_size) if dry else ""
        distiller = build_distiller(config, source, student, teacher)
        if teacher is not None:  # after the table, which copies the networks: a sharded one cannot be copied
            teacher.cache = build_teacher_cache(config, source, self.stream, teacher, world)
            teacher.prepare(
                world,
                autocast_dtype=config.train.autocast_dtype,
                channels_last=config.train.channels_last,
                shard=config.teacher.shard,
                compile_blocks=config.train.compile,
            )
        self.trainer = Trainer(
            distiller,
            teacher,
            world,
            optimizer=config.optimizer.model_dump(),
            schedule=config.schedule.model_dump(exclude={"type"}),
            autocast_dtype=config.train.autocast_dtype,
            channels_last=config.train.channels_last,
            grad_clip=config.train.grad_clip,
            curriculum={term: schedule.model_dump() for term, schedule in config.curriculum.items()},
            seed=config.train.seed,
            compile_blocks=config.train.compile,
        )
        self.validated = 0  # the last step at which the student was validated
        self.best = NONE_YET
        self.teacher_miou: float | None = None  # None: not verified yet, or it has no logits
        self.environment = environment()
        self.tolerate_errors = config.checkpoint.on_save_error == "continue"
        self.how_it_started = "new run"
        if resume is not None:
            self.restore(*resume, force)

    def positions(self, start: int, stop: int) -> PositionBatches:
        """Positions, in the training stream, of this rank's micro-batches from step ``start`` to ``stop``."""
        train = self.config.train
        return PositionBatches(start, stop, train.batch_size, self.world.size, self.world.rank, train.accumulate)

    def loader(self, stop: int) -> torch.utils.data.DataLoader:
        """This rank's micro-batches from the current step to ``stop``."""
        return make_loader(
            self.stream,
            self.positions(self.trainer.step, stop),
            workers=self.config.data.workers,
            pin_memory=self.world.device.type == "cuda",
            timeout=self.config.train.timeout,
        )

    def evaluate(self, model: SegModel | Teacher, description: str) -> SegMetrics:
        """Metrics of ``model`` on the whole validation set, which the ranks divide among them."""
        broadcast_buffers(model)  # without SyncBatchNorm the running statistics differ between ranks
        return evaluate(
            model,
            self.validation,
            device=self.world.device,
            autocast_dtype=self.config.train.autocast_dtype,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=self.config.data.workers,
            timeout=self.config.train.timeout,
            description=description,
            **self.config.eval.protocol,
        )

    @property
    def predictors(self) -> dict[str, SegModel | Teacher]:
        """The networks that have logits, by role, the student last."""
        student, teacher = self.trainer.student, self.trainer.teacher
        has_logits = teacher is not None and teacher.spec.num_classes is not None
        return {**({"teacher": teacher} if has_logits else {}), "student": student}

    def verify_teacher(self) -> None:
        """Evaluates the teacher once in a run, if it has logits.

        Raises:
            ValueError: its mIoU is not better than chance (mIoU <= 1 / K), and ``train.allow_weak_teacher`` is False.
        """
        if "teacher" not in self.predictors:
            return
        self.teacher_miou = self.evaluate(self.trainer.teacher, "validation of the teacher").miou
        chance = 1 / self.validation.num_classes
        if not self.teacher_miou > chance and not self.config.train.allow_weak_teacher:
            raise ValueError(
                f"the teacher {self.config.teacher.weights} has mIoU {self.teacher_miou:.4f} on the validation set, "
                f"no better than chance ({chance:.4f}): check its weights, class order and normalization, "
                "or set train.allow_weak_teacher=True"
            )

    def state(self) -> dict:
        """All that is needed to resume, and the metadata of the student's file."""
        student, dataset = self.trainer.student, self.validation
        metadata = {
            "network": self.config.student.model_dump(exclude={"pretrained"}),
            "normalization": student.normalization._asdict(),
            "taps": {name: tap._asdict() for name, tap in student.tap_info.items()},
            "class_names": list(dataset.class_names),
            "palette": dataset.palette.tolist(),
            "environment": self.environment,
            "config": self.config.model_dump(),
            **self.best,
        }
        return {
            **self.trainer.state(),
            "validated": self.validated,
            "best": self.best,
            "teacher_miou": self.teacher_miou,
            "micro_batches": self.world.size * self.config.train.accumulate,
            "config": self.config.model_dump(),
            "about": metadata,
        }

    def save(self, last: bool = False) -> None:
        """Rank 0 writes ``step_N.pt`` and ``last.pt`` and removes the oldest ``step_*.pt``; the other ranks wait.

        If this is the ``last`` checkpoint of the command, an error while writing is never tolerated.
        """
        if self.world.is_main:
            names = (f"step_{self.trainer.step}.pt", "last.pt")
            if self.write(*names, tolerate_errors=self.tolerate_errors and not last):
                prune_checkpoints(self.work_dir, self.config.checkpoint.keep)
        barrier()

    def write(self, *names: str, tolerate_errors: bool) -> bool:
        """Writes the state to these files in the work dir.

        Returns:
            Whether it was written.

        Raises:
            OSError: it cannot be written, and errors are not tolerated; otherwise a warning is printed.
        """
        try:
            save_checkpoint(self.state(), *(self.work_dir / name for name in names))
        except OSError as error:
            if not tolerate_errors:
                raise
            say(f"WARNING: {error}; the run continues without it (checkpoint.on_save_error)")
            return False
        return True

    def restore(self, path: Path, state: dict, force: bool) -> None:
        """Resumes from the state of the checkpoint ``path``.

        Raises:
            ValueError: the checkpoint's config computes something else, and ``force`` is False; or the state does not
                fit the networks.
        """
        old = validate(state["config"], Experiment, path)  # keys that are newer than the checkpoint get their defaults
        lines = changed_values(old.model_dump(), self.config.model_dump())
        changed = "".join(f"\n  {line}" for line in lines if not line.startswith(FREE_TO_CHANGE))
        if changed and not force:
            raise ValueError(
                f"{path} was made with another config; resume with the config.py of its folder, start a new run in "
                f"another --work-dir, or resume anyway with --force. Changed:{changed}"
            )
        try:
            self.trainer.restore(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} does not fit this config's networks, method and optimizer: {error}") from error
        self.how_it_started = f"resumed from {path} at step {self.trainer.step}"
        if changed:
            self.how_it_started += f" with a changed config:{changed}"
        micro_batches = self.world.size * self.config.train.accumulate
        if state["micro_batches"] != micro_batches:
            self.how_it_started += (
                f"; each step has the same samples in {micro_batches} micro-batches instead of "
                f"{state['micro_batches']}: batch statistics and dropout differ from now on"
            )
        self.validated, self.teacher_miou = state["validated"], state["teacher_miou"]
        # After a crash in a validation, or in another folder, best.pt does not hold the best student of the state.
        best = self.work_dir / "best.pt"
        try:
            kept = best.is_file() and load_checkpoint(best)["step"] == state["best"]["step"]
        except ValueError as error:
            say(f"WARNING: {error}; the best student so far is lost, the last student is validated again")
            kept = False
        if kept:
            self.best = state["best"]
        else:
            self.validated = min(self.validated, self.trainer.step - 1)


def find_checkpoint(work_dir: Path, asked: str | None, world: World) -> tuple[Path, dict] | None:
    """Path and state of the checkpoint that rank 0 finds (``checkpoint_to_resume``); None: a new run."""
    found = checkpoint_to_resume(work_dir, asked) if world.is_main else None
    path = broadcast_from_main(found and found[0])
    return found if world.is_main or path is None else (path, load_checkpoint(path))
