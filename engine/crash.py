"""The error and the crash dump of a step with a loss or gradient that is not finite."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint import save_checkpoint
from utils.distributed import gather_objects


class NonFiniteError(FloatingPointError):
    """A loss term or a gradient is not finite on at least one rank. Every rank raises it; no weight has changed.

    Attributes:
        dump: on the ranks where it happened, everything that is needed to analyse it; None on the other ranks.
    """

    def __init__(self, message: str, dump: dict[str, Any] | None):
        super().__init__(message)
        self.dump = dump


def non_finite_error(facts: Mapping[str, Any], micro_batches: Sequence[Mapping[str, Any]]) -> NonFiniteError:
    """The error to raise; its message is the same on every rank. Every rank must call it.

    Args:
        facts: of the step on this rank: ``step``, ``rank``, ``terms`` (their values in the step), and what else the
            dump shall hold.
        micro_batches: this rank's, each with ``name``, and with the ``terms`` and ``gradient_norms`` of a second pass.
    """
    first = {"name": [], "terms": facts["terms"], "gradient_norms": {}}
    what, bad = dict.fromkeys(_not_finite(first)), []
    for micro_batch in micro_batches:
        if found := _not_finite(micro_batch):
            what.update(dict.fromkeys(found))
            bad.append(micro_batch)
    if what and not bad:  # the second pass was finite: any micro-batch may be the cause
        bad = micro_batches
    names = [name for micro_batch in bad for name in micro_batch["name"]]
    everywhere = gather_objects((list(what), names, facts["rank"]))
    terms = list(dict.fromkeys(term for found, _, _ in everywhere for term in found))
    samples = [name for _, names, _ in everywhere for name in names]
    ranks = [str(rank) for found, _, rank in everywhere if found]
    return NonFiniteError(
        f"step {facts['step']}: not finite: {', '.join(terms) or 'the gradient, but that of each term is finite'}; "
        f"samples where it happened: {', '.join(samples) or 'unknown'} (rank {', '.join(ranks) or 'unknown'}); "
        "no optimizer step was taken. "
        "Lower optimizer.lr, set train.grad_clip, or use train.precision='bf16' instead of 'fp16'",
        {**facts, "micro_batches": list(micro_batches)} if what or not terms else None,
    )


def _not_finite(found: Mapping[str, Any]) -> list[str]:
    """The terms of a micro-batch that are not finite, and the terms whose gradient alone is not finite."""
    terms, norms = found["terms"], found["gradient_norms"]
    values = [name for name, value in terms.items() if not math.isfinite(value)]
    gradients = [name for name, norm in norms.items() if not math.isfinite(norm) and name not in values]
    return values + [f"the gradient of {name}" for name in gradients]


def write_crash_dump(error: Exception, work_dir: Path) -> str:
    """Writes the dump of a ``NonFiniteError`` to ``crash/`` in the work dir; does nothing for other errors.

    Returns:
        A line for the error message: where the dump is, or why it was not written.
    """
    if not isinstance(error, NonFiniteError) or error.dump is None:
        return ""
    path = work_dir / "crash" / f"step_{error.dump['step']}_rank_{error.dump['rank']}.pt"
    try:
        save_checkpoint(error.dump, path)
    except OSError as failure:
        return f"\n{failure}"
    return f"\n{path} holds the batch, its terms and their gradients, and the weights"
