"""One training run: what it is made of, what it goes on from, and what it leaves in its folder to go on from."""

from pathlib import Path

import torch

from configs.schema import Experiment
from datasets import make_loader
from datasets.samplers import PositionBatches
from engine.build import (
    build_distiller,
    build_split,
    build_student,
    build_teacher,
    build_teacher_cache,
    build_train_stream,
)
from engine.checkpoint import checkpoint_to_resume, load_checkpoint, prune_checkpoints, save_checkpoint
from engine.evaluation import evaluate
from engine.metrics import SegMetrics
from engine.report import network_table
from engine.trainer import Trainer
from models import SegModel
from utils.config import ConfigError, changed_values, config_errors, validate
from utils.console import environment, say
from utils.distributed import World, barrier, broadcast_buffers, broadcast_from_main

NONE_YET = {"step": 0, "miou": -1.0}  # the best student before any validation
# Where files are, how often is evaluated, saved and logged, by how many workers and kernels, changes nothing learned.
FREE_TO_CHANGE = (
    "custom_imports", "eval.", "checkpoint.", "log.", "data.workers", "data.root", "data.packed", "data.on_bad_sample",
    "student.pretrained", "teacher.shard", "train.accumulate", "train.compile", "train.timeout",
)  # fmt: skip


class Run:
    """One training run: the trainer with its data, what was found out so far, and its folder.

    Args:
        config: the experiment.
        source: the config file, which errors name.
        work_dir: folder of the run.
        world: this process among its peers.
        resume: a checkpoint and its state to go on from, or None to start afresh.
        force: go on though the config has changed since.
        dry: for a dry run: no weights are loaded.

    Raises:
        ConfigError, FileNotFoundError: data, networks, method or weights are not as the config says.
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
        # The student first: it starts from the same weights whether or not a teacher is built after it.
        class_names, fresh = self.validation.class_names, resume is None and not dry
        student, student_loaded = build_student(config, source, class_names, pretrained=fresh)
        teacher, teacher_loaded = build_teacher(config, source, class_names, pretrained=not dry)
        self.loaded = [report for report in (student_loaded, teacher_loaded) if report is not None]
        # Counted on copies, and no copy is made of a teacher that the trainer has shared out.
        networks = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
        self.overview = network_table(networks, config.data.crop_size) if dry else ""
        self.trainer = Trainer(
            build_distiller(config, source, student, teacher),
            teacher,
            world,
            optimizer=config.optimizer.model_dump(),
            schedule=config.schedule.model_dump(exclude={"type"}),
            autocast_dtype=config.train.autocast_dtype,
            channels_last=config.train.channels_last,
            grad_clip=config.train.grad_clip,
            curriculum={term: schedule.model_dump() for term, schedule in config.curriculum.items()},
            seed=config.train.seed,
            teacher_cache=build_teacher_cache(config, source, self.stream, teacher, teacher_loaded, world),
            shard_teacher=teacher is not None and config.teacher.shard,
            compile_blocks=config.train.compile,
        )
        self.validated = 0  # the last step whose student was validated
        self.best = NONE_YET
        self.teacher_miou: float | None = None
        self.environment = environment()
        self.start = "starting"
        if resume is not None:
            self.restore(*resume, force)

    def positions(self, start: int, stop: int) -> PositionBatches:
        """Positions in the stream of this rank's micro-batches from step ``start`` to ``stop``."""
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

    def evaluate(self, model: SegModel, description: str) -> SegMetrics:
        """Metrics of ``model`` on the whole validation set, shared out over the ranks."""
        broadcast_buffers(model)  # without SyncBatchNorm every rank has running statistics of its own
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

    def verify_teacher(self) -> None:
        """Evaluates the teacher, once in the life of a run.

        Raises:
            ValueError: if it is no better than chance (mIoU <= 1 / K) and this is not allowed.
        """
        self.teacher_miou = self.evaluate(self.trainer.teacher, "teacher").miou
        chance = 1 / self.validation.num_classes
        if not self.teacher_miou > chance and not self.config.train.allow_weak_teacher:
            raise ValueError(
                f"the teacher {self.config.teacher.weights} has mIoU {self.teacher_miou:.4f} on the validation set, "
                f"no better than chance ({chance:.4f}): check its weights, class order and normalization, "
                "or set train.allow_weak_teacher=True"
            )

    def state(self) -> dict:
        """All that the run goes on from, and what the student's file will say of itself."""
        student, dataset = self.trainer.student, self.validation
        about = {
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
            "about": about,
        }

    def save(self, last: bool = False) -> None:
        """Writes ``last.pt`` and ``step_N.pt``, removes the oldest of these; the other ranks wait until it is done.

        Where nothing comes after it (``last``) a checkpoint that cannot be written is an error in any case.
        """
        if self.world.is_main:
            names = (f"step_{self.trainer.step}.pt", "last.pt")
            if self.write(*names, go_on=not last and self.config.checkpoint.on_save_error == "continue"):
                prune_checkpoints(self.work_dir, self.config.checkpoint.keep)
        barrier()

    def write(self, *names: str, go_on: bool) -> bool:
        """Writes the state to these files; whether it could, if ``go_on`` without it is what is asked.

        Raises:
            OSError: it cannot be written, and not ``go_on``.
        """
        try:
            save_checkpoint(self.state(), *(self.work_dir / name for name in names))
        except OSError as error:
            if not go_on:
                raise
            say(f"WARNING: {error}; going on without it (checkpoint.on_save_error)")
            return False
        return True

    def restore(self, path: Path, state: dict, force: bool) -> None:
        """Goes on from the state in the checkpoint ``path``.

        Raises:
            ValueError: if it was made with a config that computes something else, and this is not forced.
        """
        then = validate(state["config"], Experiment, path)  # a key that did not exist then has its default
        lines = changed_values(then.model_dump(), self.config.model_dump())
        changed = "".join(f"\n  {line}" for line in lines if not line.startswith(FREE_TO_CHANGE))
        if changed and not force:
            raise ValueError(
                f"{path} was made with another config; go on with the config.py of its folder, start afresh with "
                f"another --work-dir, or go on all the same with --force. Changed since:{changed}"
            )
        try:
            self.trainer.restore(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} does not fit this config's networks, method and optimizer: {error}") from error
        self.start = f"going on from {path} at step {self.trainer.step}"
        if changed:
            self.start += f" though the config has changed:{changed}"
        micro_batches = self.world.size * self.config.train.accumulate
        if state["micro_batches"] != micro_batches:
            self.start += (
                f"; the same samples in {micro_batches} micro-batches a step instead of {state['micro_batches']}: "
                "batch statistics and dropout differ from here on"
            )
        self.validated, self.teacher_miou = state["validated"], state["teacher_miou"]
        # From elsewhere, or after a crash in a validation, the best so far is not the one whose weights are here.
        best = self.work_dir / "best.pt"
        try:
            kept = best.is_file() and load_checkpoint(best)["step"] == state["best"]["step"]
        except ValueError as error:
            say(f"WARNING: {error}; the best student so far is lost, the last one is validated again")
            kept = False
        if kept:
            self.best = state["best"]
        else:
            self.validated = min(self.validated, self.trainer.step - 1)


def find_checkpoint(work_dir: Path, asked: str | None, world: World) -> tuple[Path, dict] | None:
    """The checkpoint to go on from, and its state, as rank 0 finds it (``checkpoint_to_resume``); None: afresh."""
    found = checkpoint_to_resume(work_dir, asked) if world.is_main else None
    path = broadcast_from_main(found and found[0])
    return found if world.is_main or path is None else (path, load_checkpoint(path))
