"""The error that holds everything that is wrong with a folder."""

from collections.abc import Sequence


class DataError(ValueError):
    """A folder cannot be prepared.

    Args:
        problems: one sentence each.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def name_some(names: Sequence[str], shown: int = 5) -> str:
    """``'a, b and 3 more'``"""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
