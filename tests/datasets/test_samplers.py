import pytest

from datasets.samplers import PositionBatches


def test_positions_of_one_rank():
    assert list(PositionBatches(0, 2, 3)) == [[0, 1, 2], [3, 4, 5]]


def test_micro_batches_by_hand():
    """Steps 5 and 6 of batch 8 on two ranks with two micro-batches each: micro-batch i of rank r is i * 2 + r."""
    assert list(PositionBatches(5, 7, 8, world_size=2, rank=0, accumulate=2)) == [
        [40, 41],
        [44, 45],
        [48, 49],
        [52, 53],
    ]
    assert list(PositionBatches(5, 7, 8, world_size=2, rank=1, accumulate=2)) == [
        [42, 43],
        [46, 47],
        [50, 51],
        [54, 55],
    ]


def test_ranks_see_the_micro_batches_that_one_rank_accumulates():
    alone = list(PositionBatches(3, 6, 12, accumulate=4))
    ranks = [list(PositionBatches(3, 6, 12, world_size=2, rank=rank, accumulate=2)) for rank in range(2)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == alone


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (4, 1), (1, 4), (2, 2), (4, 3)])
def test_steps_cover_every_position_once_and_resume_where_they_stopped(world_size, accumulate):
    def run(start, stop):
        return [list(PositionBatches(start, stop, 12, world_size, rank, accumulate)) for rank in range(world_size)]

    whole, first, rest = run(0, 5), run(0, 2), run(2, 5)
    assert sorted(p for rank in whole for batch in rank for p in batch) == list(range(60))
    assert whole == [a + b for a, b in zip(first, rest, strict=True)]


def test_length_counts_micro_batches():
    sampler = PositionBatches(2, 7, 8, world_size=2, rank=1, accumulate=2)
    assert len(sampler) == len(list(sampler)) == 10


def test_uneven_batches_are_refused_with_the_three_numbers():
    with pytest.raises(ValueError, match=r"batch_size 8 .*world_size 3 x accumulate 2"):
        PositionBatches(0, 1, 8, world_size=3, accumulate=2)
    with pytest.raises(ValueError, match="batch_size 0"):
        PositionBatches(0, 1, 0)


def test_ranks_and_steps_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rank 2 of world_size 2"):
        PositionBatches(0, 1, 8, world_size=2, rank=2)
    with pytest.raises(ValueError, match="steps 3..2"):
        PositionBatches(3, 2, 8)
    with pytest.raises(ValueError, match="rank -1"):
        PositionBatches(0, 1, 8, world_size=2, rank=-1)
