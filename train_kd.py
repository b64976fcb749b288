"""Trains a student network, alone or by distillation from a frozen teacher, as one config file says.

python train_kd.py configs/demo/hmkd.py                                 one GPU, or the CPU
torchrun --nproc_per_node=4 train_kd.py configs/hmkd/camvid_b4_r18.py   four GPUs, or four CPU processes
python train_kd.py CONFIG --resume auto                                 goes on where the work dir stopped
python train_kd.py CONFIG --dry-run                                     builds all, runs one step, prints tables
python train_kd.py CONFIG --cfg-options train.batch_size=8 data.root=/data/camvid
"""

import argparse
import sys
from pathlib import Path
from traceback import clear_frames

import torch

from configs.build import (
    build_distiller,
    build_split,
    build_student,
    build_teacher,
    build_teacher_cache,
    build_train_stream,
)
from configs.schema import Experiment
from datasets import make_loader
from datasets.samplers import PositionBatches
from models import SegModel
from utils.checkpoint import checkpoint_to_resume, load_checkpoint, prune_checkpoints, save_checkpoint, save_student
from utils.config import ConfigError, blame, changed_values, dump_config, load_config
from utils.crash import keep_crash
from utils.distributed import (
    World,
    barrier,
    broadcast_buffers,
    close_world,
    from_main,
    init_world,
    lost_peer,
    make_deterministic,
)
from utils.evaluation import evaluate
from utils.files import write_atomically
from utils.lock import sole_run_in
from utils.log import RunLog, environment, peak_memory_mib, progress_bar, reason, recorded_in, say
from utils.metrics import SegMetrics
from utils.report import network_table, prediction_panel, table, term_table
from utils.sharding import joined
from utils.signals import StopSignals
from utils.skipped import SkippedSamples
from utils.trainer import Trainer

NONE_YET = {"step": 0, "miou": -1.0}  # the best student before any validation
# Where files are, how often is evaluated, saved and logged, by how many workers and kernels, changes nothing learned.
FREE_TO_CHANGE = (
    "eval.", "checkpoint.", "log.", "data.workers", "data.root", "data.packed", "student.pretrained",
    "teacher.shard", "train.accumulate", "train.compile", "train.timeout",
)  # fmt: skip


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="Python config file, e.g. configs/demo/hmkd.py")
    parser.add_argument("--work-dir", type=Path, help="folder of the run (default: work_dirs/<config name>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH|auto",
        help="go on from this checkpoint, or from the newest whole one in the work dir (afresh without one)",
    )
    parser.add_argument("--force", action="store_true", help="with --resume: go on though the config has changed")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override config values")
    parser.add_argument("--dry-run", action="store_true", help="build all, run one step, print tables, write nothing")
    args = parser.parse_args(arguments)
    args.work_dir = args.work_dir or Path("work_dirs") / Path(args.config).stem
    return args


class Run:
    """One training run: the trainer with its data, what was found out so far, and its folder."""

    def __init__(
        self, config: Experiment, args: argparse.Namespace, world: World, resume: tuple[Path, dict] | None = None
    ):
        self.config, self.world, self.work_dir = config, world, args.work_dir
        with blame(args.config, "train.batch_size"):
            self.positions(start=0, stop=0)
        self.stream = build_train_stream(config, args.config)
        self.validation = build_split(config, args.config, "val")
        if any(label is None for _, label in self.validation.files):
            raise ConfigError(f"{args.config}: data.val_list: {config.data.val_list} has images without labels")
        torch.manual_seed(config.train.seed)
        # The student first: it starts from the same weights whether or not a teacher is built after it.
        class_names, fresh = self.validation.class_names, resume is None and not args.dry_run
        student, student_loaded = build_student(config, args.config, class_names, pretrained=fresh)
        teacher, teacher_loaded = build_teacher(config, args.config, class_names, pretrained=not args.dry_run)
        self.loaded = [report for report in (student_loaded, teacher_loaded) if report is not None]
        # Counted on copies, and no copy is made of a teacher that the trainer has shared out.
        networks = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
        self.overview = network_table(networks, config.data.crop_size) if args.dry_run else ""
        self.trainer = Trainer(
            build_distiller(config, args.config, student, teacher),
            teacher,
            world,
            optimizer=config.optimizer.model_dump(),
            schedule=config.schedule.model_dump(exclude={"type"}),
            autocast_dtype=config.train.autocast_dtype,
            channels_last=config.train.channels_last,
            grad_clip=config.train.grad_clip,
            curriculum={term: schedule.model_dump() for term, schedule in config.curriculum.items()},
            seed=config.train.seed,
            teacher_cache=build_teacher_cache(config, args.config, self.stream, teacher, teacher_loaded, world),
            shard_teacher=teacher is not None and config.teacher.shard,
            compile_blocks=config.train.compile,
        )
        self.validated = 0  # the last step whose student was validated
        self.best = NONE_YET
        self.teacher_miou: float | None = None
        self.environment = environment()
        self.start = "starting"
        if resume is not None:
            self.restore(*resume, force=args.force)

    def positions(self, start: int, stop: int) -> PositionBatches:
        """Positions in the stream of this rank's micro-batches from step ``start`` to ``stop``."""
        train = self.config.train
        return PositionBatches(start, stop, train.batch_size, self.world.size, self.world.rank, train.accumulate)

    def loader(self, stop: int) -> torch.utils.data.DataLoader:
        """This rank's micro-batches from the current step to ``stop``."""
        positions, workers = self.positions(self.trainer.step, stop), self.config.data.workers
        return make_loader(self.stream, positions, workers=workers, pin_memory=self.world.device.type == "cuda")

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
        then = Experiment.model_validate(state["config"])  # a key that did not exist then has its default
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


def find_checkpoint(args: argparse.Namespace, world: World) -> tuple[Path, dict] | None:
    """The checkpoint to go on from, and its state, as rank 0 finds it; None to start afresh."""
    found = checkpoint_to_resume(args.work_dir, args.resume) if world.is_main else None
    path = from_main(found and found[0])
    return found if world.is_main or path is None else (path, load_checkpoint(path))


def launch(config: Experiment, args: argparse.Namespace, world: World) -> int:
    """A dry run, or the run, for which rank 0 keeps other runs out of its folder and writes down what is said."""
    if args.dry_run:
        dry_run(Run(config, args, world))
        return 0
    if not world.is_main:
        return train(config, args, world)
    with sole_run_in(args.work_dir), recorded_in(args.work_dir):
        return train(config, args, world)


def train(config: Experiment, args: argparse.Namespace, world: World) -> int:
    """The whole run: build, restore, verify the teacher, then validate, step, log, save.

    Returns:
        The exit code: 0, or 128 + the number of the signal that stopped it.
    """
    run = Run(config, args, world, find_checkpoint(args, world))
    trainer, total, every = run.trainer, config.schedule.max_iters, config.log
    log = RunLog(
        args.work_dir, trainer.step, run.validated, total, config.train.batch_size, active=world.is_main,
        go_on=config.checkpoint.on_save_error == "continue",
    )  # fmt: skip
    if world.is_main:
        introduce(run)
    if trainer.teacher is not None and run.teacher_miou is None and config.train.verify_teacher:
        run.verify_teacher()
        log.teacher(trainer.step, run.teacher_miou)

    signals = StopSignals()
    bar = progress_bar(total, trainer.step, args.work_dir.name, active=world.is_main)
    batches, skipped = iter(run.loader(total)), SkippedSamples(len(run.stream.dataset), active=world.is_main)
    while True:
        step = trainer.step
        if step > run.validated and (step == total or step % config.eval.interval == 0):
            with log.paused():
                validate(run, log)
        if step == total:
            break

        measure = every.grad_norm_interval > 0 and (step + 1) % every.grad_norm_interval == 0
        weights = trainer.weights
        micro_batches = [next(batches) for _ in range(config.train.accumulate)]
        skipped.note(micro_batches)
        terms, norms = trainer.train_step(micro_batches, measure)
        step = trainer.step
        bar.update()
        if step % every.interval == 0 or step == total or measure:
            log.training(step, terms, weights, norms, trainer.learning_rate, trainer.scaling())
            if run.stream.skip_bad:
                log.skipped(step, skipped.report())
        stopping = signals.agreed(world)
        # Before a validation too: whatever happens during it, no step is lost.
        if stopping or step == total or step % config.checkpoint.interval == 0 or step % config.eval.interval == 0:
            trainer.check()
            run.save(last=stopping > 0 or step == total)
        if stopping and step < total:
            log.close()
            if world.is_main:
                say(f"stopped at step {step}; the same command with --resume auto goes on")
            return 128 + stopping
    bar.close()
    log.close()
    run.save(last=True)
    if world.is_main:
        finish(run)
    return 0


def introduce(run: Run) -> None:
    """Writes down what is run and on what, and says so."""
    write_atomically(run.work_dir / "config.py", dump_config(run.config).encode())
    write_atomically(run.work_dir / "env.txt", "".join(f"{k}: {v}\n" for k, v in run.environment.items()).encode())
    where = f"{run.world.size} process(es) on {run.world.device.type}, {run.config.train.precision}"
    say(f"{run.work_dir}: {run.start}; {where}")
    for report in run.loaded:
        say(str(report))


def validate(run: Run, log: RunLog) -> None:
    """Evaluates the student, keeps it if it is the best so far, logs figures and pictures."""
    trainer = run.trainer
    metrics = run.evaluate(trainer.student, "student")
    run.validated = trainer.step
    before = run.best
    if metrics.miou > before["miou"]:
        run.best = {"step": trainer.step, "miou": metrics.miou}
    with joined(trainer.teacher, run.world, run.config.train.autocast_dtype):  # the pictures show the teacher's, too
        if run.world.is_main:
            keep(run, log, metrics, before)


def keep(run: Run, log: RunLog, metrics: SegMetrics, before: dict) -> None:
    """What one rank writes after a validation; ``before``: the best student before it."""
    trainer, dataset = run.trainer, run.validation
    go_on = run.config.checkpoint.on_save_error == "continue"
    if run.best != before and not run.write("best.pt", go_on=go_on):
        run.best = before  # what best.pt holds
    log.validation(trainer.step, metrics, dataset.class_names, run.best, run.teacher_miou)
    shown = range(min(run.config.log.panel_images, len(dataset)))
    if shown:
        protocols = dict.fromkeys(trainer.networks, run.config.eval.protocol)
        with trainer.autocast():
            picture = prediction_panel(dataset, shown, trainer.networks, protocols, errors_of=["student"])
        log.picture(trainer.step, "val/panel", picture)


def finish(run: Run) -> None:
    """Writes the best student alone, with all that is needed to rebuild it, and prints the summary."""
    best = load_checkpoint(run.work_dir / "best.pt")
    save_student(run.work_dir / "student.safetensors", best["student"], best["about"])
    rows = [["student, best", str(run.best["step"]), f"{run.best['miou']:.4f}"]]
    if run.teacher_miou is not None:
        rows.insert(0, ["teacher", "", f"{run.teacher_miou:.4f}"])
    say(table(["validation", "step", "mIoU"], rows))
    say(f"{run.work_dir / 'student.safetensors'} holds the best student")


def dry_run(run: Run) -> None:
    """One step on one batch; prints networks, terms and memory."""
    trainer, weights = run.trainer, run.trainer.weights
    terms, norms = trainer.train_step(list(run.loader(stop=1)), measure_gradients=True)
    trainer.check()
    if run.world.is_main:
        say(run.overview)
        say(term_table(weights, terms, norms))
        say(f"peak memory {peak_memory_mib():.0f} MiB on {run.world.device.type}")
        say("a dry run loads no weights and writes nothing")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        config = load_config(args.config, Experiment, args.cfg_options)
        if config.train.deterministic:
            make_deterministic()
        outcome = launch(config, args, init_world(config.train.timeout))
        close_world()
    except (ValueError, OSError, FloatingPointError) as error:
        # The process group is left standing: to leave it in order would wait for ranks that know of no error.
        outcome = f"error: {reason(error)}" + ("" if args.dry_run else keep_crash(error, args.work_dir))
        clear_frames(error.__traceback__)  # one that a worker met refers to itself, and would keep the workers alive
    except RuntimeError as error:
        outcome = f"error: {lost_peer(error, config.train.timeout)}"
    except KeyboardInterrupt:
        outcome = "interrupted before the first step or a second time: nothing was saved since the last checkpoint"
    if outcome:
        sys.exit(outcome)  # not within the handlers above, whose tracebacks keep the loader's workers alive


if __name__ == "__main__":
    main()
