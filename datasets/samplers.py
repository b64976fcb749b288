"""Which positions of the training stream each rank reads."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class PositionBatches(Sampler[list[int]]):
    """Batch sampler over the positions of a ``JointStream``: the micro-batches of one rank, step by step.

    Step s covers the positions s * batch_size ... (s + 1) * batch_size - 1. They are cut into
    world_size * accumulate micro-batches; micro-batch m = i * world_size + rank is this rank's i-th. So the global
    batch of a step has the same samples for every division among ranks. The unlabelled samples of the step are divided
    in the same way; they follow the labelled ones in each micro-batch.

    Args:
        stop_step: the step after the last.
        batch_size: global, over all ranks and accumulation steps.
        accumulate: micro-batches of each rank in a step.
        unlabelled: as ``batch_size``, of the samples without labels.

    Raises:
        ValueError: a batch cannot be divided evenly, a step has no sample, or the rank or the steps are out of range.
    """

    def __init__(
        self,
        start_step: int,
        stop_step: int,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        unlabelled: int = 0,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}; expected 0 <= rank < world_size")
        for name, size in (("batch_size", batch_size), ("unlabelled_batch", unlabelled)):
            if accumulate < 1 or size < 0 or size % (world_size * accumulate) or batch_size + unlabelled == 0:
                raise ValueError(
                    f"{name} {size} (global) cannot be divided evenly by world_size {world_size} x accumulate "
                    f"{accumulate}; expected a positive multiple of {world_size * accumulate}"
                )
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"steps {start_step}..{stop_step}; expected 0 <= start_step <= stop_step")
        self.steps = range(start_step, stop_step)
        self.sizes, self.world_size, self.rank, self.accumulate = (batch_size, unlabelled), world_size, rank, accumulate

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            for i in range(self.accumulate):
                labelled, unlabelled = (self._part(size, step, i) for size in self.sizes)
                yield [*labelled, *(-1 - position for position in unlabelled)]

    def _part(self, batch_size: int, step: int, i: int) -> range:
        """This rank's i-th part of a step's batch."""
        size = batch_size // (self.world_size * self.accumulate)
        first = step * batch_size + (i * self.world_size + self.rank) * size
        return range(first, first + size)
