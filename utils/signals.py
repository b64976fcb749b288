"""Stopping on request without losing a step."""

import signal
import time

from utils.distributed import World, largest

IMPATIENT_AFTER = 3.0  # seconds; a Ctrl-C sooner after the first is the same one, arriving by another way


class StopSignals:
    """SIGINT, SIGTERM and SIGUSR1 ask for a stop at the next step boundary.

    Launchers and schedulers may deliver the same signal more than once, so it only ever asks. A second Ctrl-C, some
    seconds after the first, stops at once.
    """

    def __init__(self) -> None:
        self.received, self.first = 0, 0.0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        if not self.received:
            self.received, self.first = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.first > IMPATIENT_AFTER:
            raise KeyboardInterrupt

    def agreed(self, world: World) -> int:
        """The signal that any rank was sent, the same on every rank, or 0."""
        return largest(self.received, world)
