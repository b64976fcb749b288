"""What holds of the order of samples for any data set, batch, number of ranks, accumulation and point of resumption."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from datasets.samplers import PositionBatches
from datasets.stream import TrainStream


def stream(samples, seed, epochs=None):
    names = [f"s{i}" for i in range(samples)]
    files = [(name, name) for name in names]

    class Dataset(SimpleNamespace):
        def __len__(self):
            return samples

    return TrainStream(Dataset(names=names, files=files), None, seed, epochs)


@st.composite
def runs(draw):
    """(samples, batch size, seed, start, stop) and two ways of (ranks, accumulation) to share the batch out."""
    shares = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=2, max_size=2))
    batch = draw(st.integers(1, 3))
    for ranks, accumulate in shares:
        batch *= ranks * accumulate
    start, length = draw(st.integers(0, 30)), draw(st.integers(0, 6))
    return draw(st.integers(1, 40)), batch, draw(st.integers(0, 2**40)), start, start + length, shares


def micro_batches(start, stop, batch, ranks, accumulate):
    """By rank, the list of its micro-batches of positions."""
    return [list(PositionBatches(start, stop, batch, ranks, rank, accumulate)) for rank in range(ranks)]


@given(runs())
def test_each_step_is_the_same_set_of_samples_however_it_is_shared_out(run):
    samples, batch, seed, start, stop, shares = run
    seen = []
    for ranks, accumulate in shares:
        streams = [stream(samples, seed) for _ in range(ranks)]  # every rank has its own
        given_out = micro_batches(start, stop, batch, ranks, accumulate)
        steps = []
        for step in range(stop - start):
            mine = [rank[step * accumulate : (step + 1) * accumulate] for rank in given_out]
            positions = sorted((p, r) for r, many in enumerate(mine) for some in many for p in some)
            assert [p for p, _ in positions] == list(range((start + step) * batch, (start + step + 1) * batch))
            steps.append([streams[r].index(p) for p, r in positions])
        seen.append(steps)
    assert seen[0] == seen[1]


@given(runs(), st.integers(1, 3), st.none() | st.integers(1, 3))
def test_every_epoch_has_every_sample_once_and_resumes_anywhere(run, passes, distinct):
    samples, batch, seed, start, _, ((ranks, accumulate), _) = run
    last = (start * batch + passes * samples) // batch + 1
    whole = stream(samples, seed, distinct)
    positions = sorted(p for rank in micro_batches(0, last, batch, ranks, accumulate) for some in rank for p in some)
    order = [whole.index(position) for position in positions]
    epochs = [order[i : i + samples] for i in range(0, len(order) - samples + 1, samples)]
    assert epochs
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    if distinct is not None:
        assert all(epoch == epochs[i % distinct] for i, epoch in enumerate(epochs))
    # From step ``start`` on, by a stream that has seen nothing before it, last position first.
    rest = sorted(p for rank in micro_batches(start, last, batch, ranks, accumulate) for some in rank for p in some)
    anew = stream(samples, seed, distinct)
    assert [anew.index(position) for position in reversed(rest)] == order[start * batch :][::-1]
