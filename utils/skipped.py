"""Training samples that could not be read and were replaced: counted, and each reported once."""

from collections.abc import Iterable, Mapping
from typing import Any

from utils.distributed import gather_objects
from utils.log import say


class SkippedSamples:
    """Collects over all ranks what the batches say of skipped samples (``skipped``, one text a sample, a line each).

    Args:
        total: samples in the data set.
        active: says what was skipped; True on one rank alone.
    """

    def __init__(self, total: int, active: bool):
        self.total, self.active = total, active
        self.known: dict[str, None] = {}  # what was reported, in order; the same on all ranks
        self._new: list[str] = []  # a text for each sample replaced

    def note(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Remembers what this rank's batches say."""
        self._new += [text for batch in batches for text in batch["skipped"] if text]

    def report(self) -> int:
        """Says each sample that is new, once; all ranks must call.

        Returns:
            How many samples were replaced since the last report, on all ranks.

        Raises:
            ValueError: on every rank, if more than half of the data set cannot be read.
        """
        replaced, self._new = sum(gather_objects(self._new), []), []
        for line in "\n".join(replaced).splitlines():
            if line not in self.known:
                self.known[line] = None
                if self.active:
                    say(f"skipped ({len(self.known)} of {self.total} samples so far): {line}")
        if 2 * len(self.known) > self.total:
            raise ValueError(
                f"{len(self.known)} of the {self.total} training samples cannot be read, more than half: mend the data "
                f"(python scripts/prepare_lists.py --config CONFIG lists what is wrong); the last is {line}"
            )
        return len(replaced)
