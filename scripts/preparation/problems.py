"""Everything that is wrong with a folder, as an error and on the screen."""

import sys
from collections.abc import Sequence

SHOWN = 20


class DataError(ValueError):
    """A folder cannot be prepared; ``problems`` are one sentence each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def report_problems(problems: Sequence[str], consequence: str = "") -> int:
    """Prints the first problems and their number to standard error. Returns the exit status, 0 if there are none."""
    for problem in problems[:SHOWN]:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        more = f" ({len(problems) - SHOWN} more than shown)" if len(problems) > SHOWN else ""
        print(f"problems: {len(problems)}{more}{consequence}", file=sys.stderr)
    return 1 if problems else 0
