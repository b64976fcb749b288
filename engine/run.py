"""One training run: it builds the parts from the config and saves their state."""

import math
import time
from pathlib import Path

import torch

from configs.schema import Experiment, autocast_dtype
from datasets import make_loader
from datasets.mixing import Mixing
from datasets.samplers import PositionBatches
from engine.build import build_distiller, build_student
from engine.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from engine.data import build_mixing, build_split, build_train_stream, check_labels, check_leaks, resolve_epochs
from engine.evaluation import describe_samples, evaluate
from engine.metrics import SegMetrics
from engine.report import network_table
from engine.resume import restore
from engine.sizes import check_crop, check_validation_sizes
from engine.teacher import Teacher, build_teacher, build_teacher_cache, in_own_resolution
from engine.trainer import Trainer
from losses.distiller import Distiller
from models import SegModel
from utils.config import ConfigError, config_errors
from utils.console import environment, say
from utils.distributed import World, barrier, broadcast_buffers, broadcast_from_main, call_on_main

CALIBRATION_IMAGES = 100  # training images on which a method measures the teacher, at least
NONE_YET = {"step": 0, "miou": -1.0}  # the best student before the first validation


def build_trainer(
    config: Experiment, distiller: Distiller, teacher: Teacher | None, world: World, mixing: Mixing | None = None
) -> Trainer:
    """The config's trainer. It moves the networks to the device, in place, and may shard the teacher."""
    train = config.train
    common = {"channels_last": train.channels_last, "compile_blocks": train.compile}
    if teacher is not None:
        teacher.prepare(world, autocast_dtype=train.autocast_dtype, shard=config.teacher.shard, **common)
    return Trainer(
        distiller, teacher, world, optimizer=config.optimizer.model_dump(), schedule=config.schedule.arguments,
        autocast_dtype=train.autocast_dtype, grad_clip=train.grad_clip, seed=train.seed, mixing=mixing, ema=train.ema,
        curriculum={term: schedule.model_dump() for term, schedule in config.curriculum.items()}, **common,
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
        dry: for a dry run: its tables are made, and the folder of ``teacher.cache`` is not used.

    Raises:
        ConfigError: data, networks, method or weights do not fit the config.
        ValueError: as ``engine.resume.restore``.
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
        self.config, self.source, self.work_dir, self.world, self.dry = config, source, work_dir, world, dry
        with config_errors(source, "train.batch_size"):
            self.positions(start=0, stop=0)
            mixing = build_mixing(config, world.size * config.train.accumulate)
        self.announce(f"data: {config.data.root}, {config.data.train_list} and {config.data.val_list}")
        self.stream = build_train_stream(config, source)
        self.epochs = config.schedule.epochs
        self.config = config = resolve_epochs(config, source, self.stream)
        self.validation = build_split(config, source, "val")
        if any(label is None for _, label in self.validation.files):
            raise ConfigError(f"{source}: data.val_list: {config.data.val_list} has images without labels")
        if self.stream.unlabelled is not None:
            check_leaks(source, self.stream.unlabelled.dataset.images, self.validation)
        labelled = self.stream.labelled and self.stream.labelled.dataset
        new = resume is None  # what a resumed run reads was checked at its start
        auto, weights = config.train.class_weights == "auto", resume and resume[1].get("class_weights")
        self.notes: list[str] = []
        if new or (auto and weights is None):
            self.notes, weights = call_on_main(check_labels, config, source, labelled, self.validation)
        self.class_weights = weights if auto else None  # those that 'auto' stands for
        torch.manual_seed(config.train.seed)
        # The student first: its random weights are the same with and without a teacher.
        class_names = self.validation.class_names
        given = config.student.init_from or config.student.pretrained
        self.announce(f"student: {config.student.title}, weights: {given or 'random'}")
        student, loaded = build_student(config, source, class_names, pretrained=resume is None)
        if config.teacher is not None:
            self.announce(f"teacher: {config.teacher.origin}")
        teacher = build_teacher(config, source, class_names)
        self.loaded = [report for report in (loaded, teacher and teacher.loaded) if report is not None]
        networks = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
        self.overview = network_table(networks, config.data.crop_size) if dry else ""
        micro_batch = config.train.images // (config.train.accumulate * world.size)
        synchronised = world.size if world.device.type == "cuda" else 1  # ranks that share their batch statistics
        check_crop(config, source, student, teacher, micro_batch * synchronised)
        if new:
            evaluated = networks if config.train.verify_teacher else {"student": student}
            call_on_main(check_validation_sizes, config, source, self.validation, evaluated)
        if config.methods:
            self.announce(f"method: {', '.join(each.type for each in config.methods)}")
        distiller = build_distiller(config, source, student, teacher, self.class_weights)
        if teacher is not None and not dry:
            teacher.cache = build_teacher_cache(config, source, self.stream, teacher, world)
        # After the table, which copies the networks: a sharded one cannot be copied.
        self.trainer = build_trainer(config, distiller, teacher, world, mixing)
        if config.self_taught:
            self.trainer.teacher = Teacher(self.trainer.ema)
        self.protocol = {
            "eval": {**config.eval.protocol, "precision": config.eval_precision},
            "validation": broadcast_from_main(describe_samples(self.validation)),
            "data": {name: value for name, value in config.data.options.items() if name != "root"},
        }
        self.validated = 0  # the last step at which the student was validated
        self.best = NONE_YET
        self.protocol_changed = False  # what the log holds so far was measured under another protocol
        self.best_is_outdated = False  # and so was the best student
        self.teacher_miou: float | None = None  # None: not verified yet, or it has no logits
        self.environment = environment()
        self.tolerate_errors = config.checkpoint.on_save_error == "continue"
        self.how_it_started = "new run"
        if resume is not None:
            restore(self, *resume, force)
        elif distiller.method is not None and distiller.method.needs_calibration:
            self.calibrate()

    def announce(self, stage: str) -> None:
        """Prints the stage that begins. It is not in train.log, because a run that never starts leaves no file."""
        if self.world.is_main:
            print(stage, flush=True)

    def positions(self, start: int, stop: int) -> PositionBatches:
        """Positions, in the training stream, of this rank's micro-batches from step ``start`` to ``stop``."""
        train = self.config.train
        return PositionBatches(
            start, stop, train.batch_size, self.world.size, self.world.rank, train.accumulate, train.unlabelled_batch
        )

    def loader(self, positions: PositionBatches) -> torch.utils.data.DataLoader:
        """The micro-batches at these positions of the training stream."""
        return make_loader(
            self.stream,
            positions,
            workers=self.config.data.workers,
            pin_memory=self.world.device.type == "cuda",
            timeout=self.config.train.timeout,
        )

    def calibrate(self) -> None:
        """Lets the method measure the teacher on the first training samples, the same on all ranks."""
        train, start = self.config.train, time.perf_counter()
        steps = math.ceil(CALIBRATION_IMAGES / train.images)
        parts = self.world.size * train.accumulate  # every rank reads them all, in batches of the usual size
        positions = PositionBatches(0, steps, train.batch_size, accumulate=parts, unlabelled=train.unlabelled_batch)
        with config_errors(self.source, "distill"):
            self.trainer.calibrate(lambda: self.loader(positions))
        if self.world.is_main:
            say(f"measured the teacher on {steps * train.images} training images: {time.perf_counter() - start:.1f} s")

    def evaluate(self, model: SegModel | Teacher, description: str) -> SegMetrics:
        """Metrics of ``model`` on the whole validation set, which the ranks divide among them.

        Raises:
            ValueError: the mIoU is nan, because no pixel of the labels has a class.
        """
        broadcast_buffers(model)  # without SyncBatchNorm the running statistics differ between ranks
        as_it_teaches = isinstance(model, Teacher)  # its weights have the precision of the training
        precision = self.config.train.precision if as_it_teaches else self.config.eval_precision
        model, protocol = in_own_resolution(model, self.config.eval.protocol)
        metrics = evaluate(
            model,
            self.validation,
            device=self.world.device,
            autocast_dtype=autocast_dtype(precision),
            workers=self.config.data.workers,
            timeout=self.config.train.timeout,
            description=description,
            **protocol,
        )
        if math.isnan(metrics.miou):
            raise ValueError(
                f"data.val_list: none of the {len(self.validation)} labels holds a pixel with a class, so no mIoU can "
                "be measured; expected labelled images"
            )
        return metrics

    @property
    def steps_per_epoch(self) -> float:
        """A pass over the labelled images, or over the unlabelled ones if no image has a label (``resolve_epochs``)."""
        return len(self.stream.streams[0].dataset) / (
            self.config.train.batch_size or self.config.train.unlabelled_batch
        )

    @property
    def from_data(self) -> list[str]:
        """What the config leaves to the data, in lines to print."""
        lines = []
        if self.epochs is not None:
            images, steps = len(self.stream.streams[0].dataset), self.config.schedule.max_iters
            lines.append(f"schedule.epochs={self.epochs}: {steps} steps, {images} images an epoch")
        if self.stream.unlabelled is not None:
            labelled, unlabelled = (
                0 if each is None else len(each.dataset) for each in (self.stream.labelled, self.stream.unlabelled)
            )
            lines.append(f"training images: {labelled} with labels, {unlabelled} without")
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

    @property
    def has_unverified_teacher(self) -> bool:
        """Whether ``verify_teacher`` is still to be called. A student that teaches itself has nothing to verify."""
        asked = self.config.teacher is not None and self.config.train.verify_teacher
        return asked and self.teacher_miou is None and not self.config.self_taught

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
                f"the teacher {self.config.teacher.origin} has mIoU {self.teacher_miou:.2%} on the validation set, "
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
