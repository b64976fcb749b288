"""Finds the checkpoint that a run is resumed from, compares its config with the run's, and takes its state."""

from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Experiment
from engine.checkpoint import checkpoint_to_resume, load_checkpoint
from engine.optim import learning_rate_factor
from utils.config import changed_values, validate
from utils.console import say
from utils.distributed import World, broadcast_from_main

if TYPE_CHECKING:
    from engine.run import Run

# These may change when a run is resumed, because they do not change what is learned: where files are, how often the run
# evaluates, saves and logs, and how the work is divided.
FREE_TO_CHANGE = (
    "custom_imports", "eval.", "checkpoint.", "log.", "data.workers", "data.root", "data.unlabelled_root",
    "data.packed", "data.on_bad_sample", "student.pretrained", "student.init_from", "teacher.shard",
    "train.accumulate", "train.compile", "train.timeout",
)  # fmt: skip


def find_checkpoint(work_dir: Path, asked: str | None, world: World) -> tuple[Path, dict] | None:
    """Path and state of the checkpoint that rank 0 finds (``checkpoint_to_resume``); None: a new run."""
    found = checkpoint_to_resume(work_dir, asked) if world.is_main else None
    path = broadcast_from_main(found and found[0])
    return found if world.is_main or path is None else (path, load_checkpoint(path))


def restore(run: "Run", path: Path, state: dict, force: bool) -> None:
    """Resumes a new run from the state of the checkpoint ``path``.

    Raises:
        ValueError: the checkpoint's config computes something else, and ``force`` is False; or the state does not
            fit the networks.
    """
    old = validate(state["config"], Experiment, path)  # keys that are newer than the checkpoint get their defaults
    lines = changed_values(old.model_dump(), run.config.model_dump())
    changed = "".join(f"\n  {line}" for line in lines if not line.startswith(FREE_TO_CHANGE))
    free = "".join(f"\n  {line}" for line in lines if line.startswith(FREE_TO_CHANGE))
    if changed and not force:
        raise ValueError(
            f"{path} was made with another config; resume with the config.py of its folder, start a new run in "
            f"another --work-dir, or resume anyway with --force. Changed:{changed}"
        )
    if old.optimizer.type != run.config.optimizer.type:
        raise ValueError(
            f"{path} was made with optimizer.type={old.optimizer.type!r}; the config has "
            f"{run.config.optimizer.type!r}, which cannot use the state of the other: set optimizer.type="
            f"{old.optimizer.type!r}, or start a new run in another --work-dir"
        )
    step, total = state["step"], run.config.schedule.max_iters
    if step > total:
        raise ValueError(
            f"{path} is at step {step}, and schedule.max_iters is {total}: set schedule.max_iters={step} or "
            "more, or resume from an earlier checkpoint in another --work-dir"
        )
    try:
        run.trainer.restore(state, old.optimizer.model_dump())
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not fit this config's networks, method and optimizer: {error}") from error
    run.how_it_started = f"resumed from {path} at step {run.trainer.step}"
    if changed or free:
        run.how_it_started += f" with a changed config:{changed}{free}"
    rates = [
        each.optimizer.lr * learning_rate_factor(step, **each.schedule.arguments)
        for each in (old, run.config)
        if step <= each.schedule.max_iters
    ]
    if rates[0] != rates[-1]:
        run.how_it_started += f"\n  the learning rate of step {step} is {rates[-1]:.2e} instead of {rates[0]:.2e}"
    micro_batches = run.world.size * run.config.train.accumulate
    if state["micro_batches"] != micro_batches:
        run.how_it_started += (
            f"; each step has the same samples in {micro_batches} micro-batches instead of "
            f"{state['micro_batches']}: batch statistics and dropout differ from now on"
        )
    run.validated, run.teacher_miou = state["validated"], state["teacher_miou"]
    # Older checkpoints do not say how they were validated.
    protocol = changed_values(state.get("protocol", run.protocol), run.protocol)
    run.protocol_changed = bool(protocol)
    if protocol:
        run.teacher_miou = None
        run.how_it_started += (
            "\n  the validation is another one, so the best student and the teacher are measured again:"
            + "".join(f"\n  {line}" for line in protocol)
        )
    # After a crash in a validation, or in another folder, best.pt does not hold the best student of the state.
    best = run.work_dir / "best.pt"
    try:
        measured = load_checkpoint(best) if best.is_file() else None
    except ValueError as error:
        say(f"WARNING: {error}; the best student so far is lost, the last student is validated again")
        measured = None
    if measured is not None and measured["step"] == state["best"]["step"]:
        run.best = measured["best"]
        run.best_is_outdated = measured.get("protocol", state.get("protocol", run.protocol)) != run.protocol
        run.protocol_changed |= run.best_is_outdated  # an attempt to resume may have got as far as its log
    else:
        run.validated = min(run.validated, run.trainer.step - 1)
