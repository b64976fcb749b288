"""Stopping on request without losing a step."""

import signal

import torch

from utils.distributed import World, all_reduce_sum


class StopSignals:
    """SIGINT and SIGTERM ask for a stop at the next step boundary; a second one stops at once."""

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def agreed(self, world: World) -> int:
        """The signal that any rank was sent, the same on every rank, or 0."""
        number = torch.tensor(float(self.received), device=world.device)
        count = torch.tensor(float(self.received > 0), device=world.device)
        pair = all_reduce_sum(torch.stack([number, count])) if world.size > 1 else torch.stack([number, count])
        number, count = pair.tolist()
        return round(number / count) if count else 0
