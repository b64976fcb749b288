"""One training run: it builds the parts from the config, saves their state and resumes from it."""

import math
from pathlib import Path

import torch

from configs.schema import Experiment, autocast_dtype
from datasets import make_loader
from datasets.samplers import PositionBatches
from engine.build import build_distiller, build_split, build_student, build_train_stream, check_labels, resolve_epochs
from engine.checkpoint import checkpoint_to_resume, load_checkpoint, prune_checkpoints, save_checkpoint
from engine.evaluation import describe_samples, evaluate
from engine.metrics import SegMetrics
from engine.optim import learning_rate_factor
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
    "student.pretrained", "student.init_from", "teacher.shard", "train.accumulate", "train.compile", "train.timeout",
)  # fmt: skip


class Run:
    """One training run: the trainer, its data, the results so far and the folder.

    Args:
        config: the experiment. The run's own has ``schedule.max_iters`` instead of ``schedule.epochs``.
        source: the config file, which errors name.
        work_dir: folder of the run.
        world: this process and its peers.
        resume: path and state of the checkpoint to resume from; None: a new run.
        force: resume even if the config has changed.
        dry: for a dry run: each stage is printed before it begins, and the folder of ``teacher.cache`` is not used.

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
        self.config, self.work_dir, self.world, self.dry = config, work_dir, world, dry
        with config_errors(source, "train.batch_size"):
            self.positions(start=0, stop=0)
        self.announce(f"data: {config.data.root}, {config.data.train_list} and {config.data.val_list}")
        self.stream = build_train_stream(config, source)
        self.epochs = config.schedule.epochs
        self.config = config = resolve_epochs(config, source, len(self.stream.dataset))
        self.validation = build_split(config, source, "val")
        if any(label is None for _, label in self.validation.files):
            raise ConfigError(f"{source}: data.val_list: {config.data.val_list} has images without labels")
        auto, weights = config.train.class_weights == "auto", resume and resume[1].get("class_weights")
        self.notes: list[str] = []
        if resume is None or (auto and weights is None):
            self.notes, weights = self.check_labels(source)
        self.class_weights = weights if auto else None  # those that 'auto' stands for
        torch.manual_seed(config.train.seed)
        # The student first: its random weights are the same with and without a teacher.
        class_names = self.validation.class_names
        self.announce(
            f"student: {config.student.backbone}, weights {config.student.init_from or config.student.pretrained}"
        )
        student, loaded = build_student(config, source, class_names, pretrained=resume is None)
        self.announce(f"teacher: {config.teacher and config.teacher.weights}")
        teacher = build_teacher(config, source, class_names)
        self.loaded = [report for report in (loaded, teacher and teacher.loaded) if report is not None]
        networks = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
        self.overview = network_table(networks, config.data.crop_size) if dry else ""
        self.announce(f"method: {', '.join(each.type for each in config.methods) or None}")
        distiller = build_distiller(config, source, student, teacher, self.class_weights)
        if teacher is not None:  # after the table, which copies the networks: a sharded one cannot be copied
            if not dry:
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
            schedule=config.schedule.arguments,
            autocast_dtype=config.train.autocast_dtype,
            channels_last=config.train.channels_last,
            grad_clip=config.train.grad_clip,
            curriculum={term: schedule.model_dump() for term, schedule in config.curriculum.items()},
            seed=config.train.seed,
            compile_blocks=config.train.compile,
            ema=config.train.ema,
        )
        self.protocol = {
            "eval": {**config.eval.protocol, "precision": config.eval_precision},
            "validation": broadcast_from_main(describe_samples(self.validation)),
            "data": {name: value for name, value in config.data.options.items() if name != "root"},
        }
        self.validated = 0  # the last step at which the student was validated
        self.best = NONE_YET
        self.best_is_outdated = False  # it was measured under another protocol
        self.teacher_miou: float | None = None  # None: not verified yet, or it has no logits
        self.environment = environment()
        self.tolerate_errors = config.checkpoint.on_save_error == "continue"
        self.how_it_started = "new run"
        if resume is not None:
            self.restore(*resume, force)

    def check_labels(self, source: str) -> tuple[list[str], tuple[float, ...]]:
        """What is odd about the labels, and the classes' weights (``engine.build.check_labels``); rank 0 reads them.

        Raises:
            ConfigError: on every rank, as ``engine.build.check_labels``.
        """
        found: tuple | Exception | None = None
        if self.world.is_main:
            try:
                found = check_labels(self.config, source, self.stream.dataset, self.validation)
            except (ValueError, OSError) as error:
                found = error
        found = broadcast_from_main(found)
        if isinstance(found, Exception):
            raise found
        return found

    def announce(self, stage: str) -> None:
        """Prints, in a dry run, the stage that begins."""
        if self.dry and self.world.is_main:
            say(stage)

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
        """Metrics of ``model`` on the whole validation set, which the ranks divide among them.

        Raises:
            ValueError: the mIoU is nan, because no pixel of the labels has a class.
        """
        broadcast_buffers(model)  # without SyncBatchNorm the running statistics differ between ranks
        as_it_teaches = isinstance(model, Teacher)  # its weights have the precision of the training
        precision = self.config.train.precision if as_it_teaches else self.config.eval_precision
        metrics = evaluate(
            model,
            self.validation,
            device=self.world.device,
            autocast_dtype=autocast_dtype(precision),
            rank=self.world.rank,
            world_size=self.world.size,
            workers=self.config.data.workers,
            timeout=self.config.train.timeout,
            description=description,
            **self.config.eval.protocol,
        )
        if math.isnan(metrics.miou):
            raise ValueError(
                f"data.val_list: none of the {len(self.validation)} labels holds a pixel with a class, so no mIoU can "
                "be measured; expected labelled images"
            )
        return metrics

    @property
    def from_data(self) -> list[str]:
        """What the config leaves to the data, in lines to print."""
        lines = []
        if self.epochs is not None:
            images, batch, steps = (
                len(self.stream.dataset),
                self.config.train.batch_size,
                self.config.schedule.max_iters,
            )
            lines.append(f"schedule.epochs={self.epochs}: {steps} steps of {batch} images, {images} images an epoch")
        if self.class_weights is not None:
            named = zip(self.validation.class_names, self.class_weights, strict=True)
            weights = ", ".join(f"{name} {weight:.2f}" for name, weight in named)
            lines.append(f"train.class_weights='auto': {weights}")
        return lines

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
                f"the teacher {self.config.teacher.weights} has mIoU {self.teacher_miou:.2%} on the validation set, "
                f"no better than chance ({chance:.2%}): check its weights, class order and normalization, "
                "or set train.allow_weak_teacher=True"
            )

    def measure_best(self) -> None:
        """Validates the best student again, under this run's protocol; ``best.pt`` gets the new mIoU."""
        path, student, before = self.work_dir / "best.pt", self.trainer.student, self.best
        state = load_checkpoint(path)
        current = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        student.load_state_dict(state["student"])
        self.best = {**before, "miou": self.evaluate(student, "best student").miou}
        student.load_state_dict(current)
        if self.world.is_main:
            config = {**state["about"]["config"], "eval": self.config.eval.model_dump()}
            about = {**state["about"], **self.best, "config": config}
            save_checkpoint({**state, "best": self.best, "protocol": self.protocol, "about": about}, path)
            measured = f"val mIoU {self.best['miou']:.2%} instead of {before['miou']:.2%}"
            say(f"the best student, of step {before['step']}, measured again: {measured}")
        self.best_is_outdated = False
        barrier()

    def state(self) -> dict:
        """All that is needed to resume, and the metadata of the student's file."""
        student, dataset = self.trainer.student, self.validation
        metadata = {
            "network": self.config.student.network,
            "normalization": student.normalization._asdict(),
            "taps": {name: tap._asdict() for name, tap in student.tap_info.items()},
            "class_names": list(dataset.class_names),
            "palette": dataset.palette.tolist(),
            "environment": self.environment,
            "config": self.config.model_dump(mode="json"),  # JSON has no tuples as keys
            **self.best,
        }
        return {
            **self.trainer.state(),
            "validated": self.validated,
            "best": self.best,
            "teacher_miou": self.teacher_miou,
            **({} if self.class_weights is None else {"class_weights": self.class_weights}),
            "protocol": self.protocol,
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

    def write(self, *names: str, tolerate_errors: bool, averaged: bool = False) -> bool:
        """Writes the state to these files in the work dir.

        Args:
            names: of the files.
            tolerate_errors: print a warning if they cannot be written.
            averaged: the files' ``student``, which evaluation and export read, has the averaged weights; those that are
                trained are under ``trained``.

        Returns:
            Whether it was written.

        Raises:
            OSError: it cannot be written, and errors are not tolerated; otherwise a warning is printed.
        """
        state = self.state()
        if averaged:
            state |= {"trained": state["student"], "student": state.pop("ema")}
        try:
            save_checkpoint(state, *(self.work_dir / name for name in names))
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
        free = "".join(f"\n  {line}" for line in lines if line.startswith(FREE_TO_CHANGE))
        if changed and not force:
            raise ValueError(
                f"{path} was made with another config; resume with the config.py of its folder, start a new run in "
                f"another --work-dir, or resume anyway with --force. Changed:{changed}"
            )
        if old.optimizer.type != self.config.optimizer.type:
            raise ValueError(
                f"{path} was made with optimizer.type={old.optimizer.type!r}; the config has "
                f"{self.config.optimizer.type!r}, which cannot use the state of the other: set optimizer.type="
                f"{old.optimizer.type!r}, or start a new run in another --work-dir"
            )
        step, total = state["step"], self.config.schedule.max_iters
        if step > total:
            raise ValueError(
                f"{path} is at step {step}, and schedule.max_iters is {total}: set schedule.max_iters={step} or "
                "more, or resume from an earlier checkpoint in another --work-dir"
            )
        try:
            self.trainer.restore(state, old.optimizer.model_dump())
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} does not fit this config's networks, method and optimizer: {error}") from error
        self.how_it_started = f"resumed from {path} at step {self.trainer.step}"
        if changed or free:
            self.how_it_started += f" with a changed config:{changed}{free}"
        rates = [
            each.optimizer.lr * learning_rate_factor(step, **each.schedule.arguments)
            for each in (old, self.config)
            if step <= each.schedule.max_iters
        ]
        if rates[0] != rates[-1]:
            self.how_it_started += f"\n  the learning rate of step {step} is {rates[-1]:.2e} instead of {rates[0]:.2e}"
        micro_batches = self.world.size * self.config.train.accumulate
        if state["micro_batches"] != micro_batches:
            self.how_it_started += (
                f"; each step has the same samples in {micro_batches} micro-batches instead of "
                f"{state['micro_batches']}: batch statistics and dropout differ from now on"
            )
        self.validated, self.teacher_miou = state["validated"], state["teacher_miou"]
        # Older checkpoints do not say how they were validated.
        protocol = changed_values(state.get("protocol", self.protocol), self.protocol)
        if protocol:
            self.teacher_miou = None
            self.how_it_started += (
                "\n  the validation is another one, so the best student and the teacher are measured again:"
                + "".join(f"\n  {line}" for line in protocol)
            )
        # After a crash in a validation, or in another folder, best.pt does not hold the best student of the state.
        best = self.work_dir / "best.pt"
        try:
            measured = load_checkpoint(best) if best.is_file() else None
        except ValueError as error:
            say(f"WARNING: {error}; the best student so far is lost, the last student is validated again")
            measured = None
        if measured is not None and measured["step"] == state["best"]["step"]:
            self.best = measured["best"]
            self.best_is_outdated = measured.get("protocol", state.get("protocol", self.protocol)) != self.protocol
        else:
            self.validated = min(self.validated, self.trainer.step - 1)


def find_checkpoint(work_dir: Path, asked: str | None, world: World) -> tuple[Path, dict] | None:
    """Path and state of the checkpoint that rank 0 finds (``checkpoint_to_resume``); None: a new run."""
    found = checkpoint_to_resume(work_dir, asked) if world.is_main else None
    path = broadcast_from_main(found and found[0])
    return found if world.is_main or path is None else (path, load_checkpoint(path))
