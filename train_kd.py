"""Trains a student network, alone or by distillation from a frozen teacher, from one config file.

python train_kd.py configs/demo/hmkd.py                                 one GPU, or the CPU
torchrun --nproc_per_node=4 train_kd.py configs/hmkd/camvid_b4_r18.py   four GPUs, or four CPU processes
python train_kd.py CONFIG --resume auto                                 resumes the run in the work dir
python train_kd.py CONFIG --dry-run                                     runs one step, prints tables, writes nothing
python train_kd.py CONFIG --cfg-options train.batch_size=8 data.root=/data/camvid
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__" and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
    print("loading PyTorch ...", file=sys.stderr)  # before its import, which takes seconds

from configs.schema import Experiment
from engine.checkpoint import load_checkpoint, save_student
from engine.launch import launch
from engine.log import RunLog, SkippedSamples
from engine.metrics import SegMetrics
from engine.report import batch_panel, prediction_panel, table, term_table
from engine.resume import find_checkpoint
from engine.run import Run
from engine.sharding import keep_gathering
from engine.teacher import in_own_resolution
from engine.trackers import check_trackers
from utils.config import dump_config
from utils.console import log_to_file, peak_memory_mib, say
from utils.distributed import StopSignals, World
from utils.files import lock_work_dir, user_path, write_atomically


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="Python config file, e.g. configs/demo/hmkd.py")
    parser.add_argument("--work-dir", type=user_path, help="folder for the run (default: work_dirs/<config name>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        type=os.path.expanduser,
        metavar="PATH|auto",
        help="resume from this checkpoint, or from the newest complete one in the work dir (if none, start a new run)",
    )
    parser.add_argument("--force", action="store_true", help="with --resume: resume even if the config has changed")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override config values")
    parser.add_argument("--dry-run", action="store_true", help="build all, run one step, print tables, write nothing")
    args = parser.parse_args(arguments)
    args.work_dir = args.work_dir or Path("work_dirs") / Path(args.config).stem
    return args


def run_experiment(config: Experiment, args: argparse.Namespace, world: World) -> int:
    """A dry run or a training run; in a training run rank 0 locks the folder and logs what it prints there."""
    check_trackers(config.log.trackers, args.config)
    if args.dry_run:
        dry_run(Run(config, args.config, args.work_dir, world, dry=True))
        return 0
    if not world.is_main:
        return train(config, args, world)
    with lock_work_dir(args.work_dir), log_to_file(args.work_dir):
        return train(config, args, world)


def train(config: Experiment, args: argparse.Namespace, world: World) -> int:
    """The whole run: build and restore, verify the teacher, then a loop of steps, logs, validations and checkpoints.

    Returns:
        The exit code: 0, or 128 + the number of the signal that stopped the run.
    """
    resume = find_checkpoint(args.work_dir, args.resume, world)
    run = Run(config, args.config, args.work_dir, world, resume, args.force)
    del resume  # it needs as much memory as the networks
    trainer, total, log_config = run.trainer, run.config.schedule.max_iters, config.log
    first = trainer.step
    log = RunLog(
        args.work_dir, trainer.step, run.validated, total, config.train.images, active=world.is_main,
        tolerate_errors=run.tolerate_errors, trackers=log_config.trackers, config=run.config.model_dump(mode="json"),
        interval=config.eval.interval, epoch=run.steps_per_epoch, best=run.best["miou"],
    )  # fmt: skip
    if world.is_main:
        write_provenance(run)
    if run.best_is_outdated:
        with log.paused():
            run.measure_best()
    if run.protocol_changed:
        log.new_protocol(trainer.step, run.best)
    if run.has_unverified_teacher:
        with log.paused():
            run.verify_teacher()
        log.teacher(trainer.step, run.teacher_miou)

    signals = StopSignals()
    batches = iter(run.loader(run.positions(trainer.step, total)))
    skipped = SkippedSamples(run.stream.num_samples, active=world.is_main)
    while True:
        step = trainer.step
        if step > run.validated and (step == total or step % config.eval.interval == 0):
            with log.paused():
                validate(run, log)
        if step == total:
            break

        measure = log_config.grad_norm_interval > 0 and (step + 1) % log_config.grad_norm_interval == 0
        weights = trainer.weights
        micro_batches = [next(batches) for _ in range(config.train.accumulate)]
        skipped.note(micro_batches)
        if step == first and log_config.panel_images:
            images, labels, _ = trainer.inputs(micro_batches[0])  # on all ranks, because a sharded teacher may mix them
            shown = (images[: log_config.panel_images], labels.ids[: log_config.panel_images])
            log.picture(step, "train/batch", batch_panel(*shown, run.validation))
        terms, norms = trainer.train_step(micro_batches, measure)
        step = trainer.step
        log.progress(step, terms["loss"])
        if step % log_config.interval == 0 or step == total or measure:
            log.training(step, terms, weights, norms, trainer.learning_rate, trainer.scaling())
            if run.stream.skip_bad:
                log.skipped(step, skipped.report())
        stopping = signals.received_by_any(world)
        # Also before a validation, so that no step is lost if it fails.
        if stopping or step == total or step % config.checkpoint.interval == 0 or step % config.eval.interval == 0:
            trainer.check()
            run.save(last=stopping > 0 or step == total)
        if stopping and step < total:
            skipped.report()
            log.close(finished=False)
            if world.is_main:
                say(f"stopped at step {step}; to continue, add --resume auto to the same command")
            return 128 + stopping
    run.save(last=True)
    if world.is_main:
        finish(run)
    log.close()
    return 0


def write_provenance(run: Run) -> None:
    """Writes the config and the environment to the folder, and prints how the run starts."""
    write_atomically(run.work_dir / "config.py", dump_config(run.config).encode())
    write_atomically(run.work_dir / "env.txt", "".join(f"{k}: {v}\n" for k, v in run.environment.items()).encode())
    where = f"{run.world.size} process(es) on {run.world.device.type}, {run.config.train.precision}"
    say(f"{run.work_dir}: {where}; {run.how_it_started}")
    print_findings(run)


def print_findings(run: Run) -> None:
    """Prints what the run found in its data and weights."""
    for line in run.from_data:
        say(line)
    for note in run.notes:
        say(f"WARNING: {note}")
    for report in run.loaded:
        say(str(report))


def validate(run: Run, log: RunLog) -> None:
    """Evaluates the student, saves it if it is the best so far, logs metrics and pictures."""
    trainer = run.trainer
    metrics, averaged = run.evaluate(trainer.student, "validation"), None
    if trainer.ema is not None:
        averaged = run.evaluate(trainer.ema, "validation of the averaged weights").miou
    run.validated = trainer.step
    before = run.best
    if metrics.miou > before["miou"]:
        run.best = {"step": trainer.step, "miou": metrics.miou}
    if averaged is not None and averaged > run.best["miou"]:
        run.best = {"step": trainer.step, "miou": averaged, "averaged": True}
    # Rank 0 runs the teacher for the pictures, and its weights may be on all ranks.
    with keep_gathering(trainer.teacher, run.world, run.config.train.autocast_dtype):
        if run.world.is_main:
            record_validation(run, log, metrics, averaged, before)


def record_validation(run: Run, log: RunLog, metrics: SegMetrics, averaged: float | None, before: dict) -> None:
    """Writes, on rank 0, the results of a validation.

    Args:
        run: the run.
        log: its log.
        metrics: the student's.
        averaged: mIoU of the student's averaged weights, if there are any.
        before: the best student before this validation.
    """
    trainer, dataset = run.trainer, run.validation
    best_is_averaged = "averaged" in run.best
    if run.best != before and not run.write("best.pt", tolerate_errors=run.tolerate_errors, averaged=best_is_averaged):
        run.best = before  # best.pt still holds it
    log.validation(trainer.step, metrics, dataset.class_names, run.best, run.teacher_miou, averaged)
    if run.teacher_miou is not None and before["miou"] <= run.teacher_miou < metrics.miou:  # for the first time
        say(
            f"the student ({metrics.miou:.2%}) is better than its teacher ({run.teacher_miou:.2%}) in this validation; "
            "a teacher that is worse than its student cannot help it much: compare with the student alone "
            "(teacher=None distill=None), or train a better teacher"
        )
    shown = range(min(run.config.log.panel_images, len(dataset)))
    if shown:
        views = {name: in_own_resolution(net, run.config.eval.protocol) for name, net in run.predictors.items()}
        networks, protocols = ({name: view[i] for name, view in views.items()} for i in (0, 1))
        with trainer.autocast():
            picture = prediction_panel(dataset, shown, networks, protocols)
        log.picture(trainer.step, "val/panel", picture)


def finish(run: Run) -> None:
    """Writes ``student.safetensors``: the best network and the metadata to rebuild it. Prints the summary."""
    best = load_checkpoint(run.work_dir / "best.pt")
    save_student(run.work_dir / "student.safetensors", best["student"], best["about"])
    network = "trained network (averaged weights)" if "averaged" in run.best else "trained network"
    rows = [[f"{network}, best", str(run.best["step"]), f"{run.best['miou']:.2%}"]]
    if run.teacher_miou is not None:
        rows.insert(0, ["teacher", "", f"{run.teacher_miou:.2%}"])
    say(table(["validation", "step", "mIoU"], rows))
    say(f"{run.work_dir / 'student.safetensors'} holds the best {network}")


def dry_run(run: Run) -> None:
    """One step on one batch; prints networks, terms and memory."""
    trainer, weights = run.trainer, run.trainer.weights
    run.announce(f"step: one batch of {run.config.train.images} images")
    terms, norms = trainer.train_step(list(run.loader(run.positions(0, 1))), measure_gradients=True)
    trainer.check()
    if run.world.is_main:
        print_findings(run)
        say(run.overview)
        say(term_table(weights, terms, norms))
        say(f"peak memory {peak_memory_mib():.0f} MiB on {run.world.device.type}")
        say("a dry run writes nothing")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    launch(run_experiment, args, work_dir=None if args.dry_run else args.work_dir)


if __name__ == "__main__":
    main()
