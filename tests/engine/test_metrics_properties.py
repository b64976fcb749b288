"""The counts of any maps equal those made pixel by pixel in Python; evaluation shards hold each sample once."""

import math
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.evaluation import evaluate
from engine.metrics import ConfusionMatrix
from models.base import SegOutput

TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def a_map(K, size, wild, rng):
    """Few ids, so that neighbours agree; void and, if ``wild``, some that no map may hold."""
    ids = [*rng.integers(0, K, 3), 255, *([K, 254, rng.integers(256)] if wild else [])]
    return rng.choice(np.clip(ids, 0, 255), size)


@settings(max_examples=2 * settings.default.max_examples)
@given(
    K=st.sampled_from([1, 2, 5, 19, 150, 253, 254]),
    size=st.tuples(st.integers(0, 7), st.integers(1, 9)),
    wild=st.tuples(st.booleans(), st.booleans()),
    types=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)) | st.just((torch.uint8, torch.uint8)),
    transposed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_maps_are_counted_as_pixel_by_pixel(K, size, wild, types, transposed, seed):
    rng = np.random.default_rng(seed)
    predictions, labels = (a_map(K, size, odd, rng) for odd in wild)
    if not wild[0]:
        predictions = predictions % K
    prediction, label = (torch.from_numpy(x).to(t) for x, t in zip((predictions, labels), types, strict=True))
    if transposed:  # not contiguous
        prediction, label = prediction.T, label.T
    confusion = ConfusionMatrix(K)
    confusion.update(prediction, label)
    confusion.update(prediction[None], label[None])
    everything = Counter()
    for p, t in zip(predictions.flat, labels.flat, strict=True):
        everything[int(t if t < K else K if t == 255 else K + 1), int(min(p, K))] += 2
    found = confusion.counts
    assert {tuple(where): int(found[tuple(where)]) for where in found.nonzero().tolist()} == everything
    if any(row > K or column == K for row, column in everything):
        wrong = "label pixels are outside" if any(row > K for row, _ in everything) else "predicted pixels"
        with pytest.raises(ValueError, match=wrong):
            confusion.compute()
        return
    expected = {(t, p): n for (t, p), n in everything.items() if t < K}
    figures = confusion.compute()
    truth, guess = ([sum(n for key, n in expected.items() if key[i] == k) for k in range(K)] for i in (0, 1))
    right = [expected.get((k, k), 0) for k in range(K)]
    ious = [r / (t + g - r) if t + g - r else math.nan for r, t, g in zip(right, truth, guess, strict=True)]
    accs = [r / t if t else math.nan for r, t in zip(right, truth, strict=True)]
    assert figures.per_class_iou == pytest.approx(ious, nan_ok=True, abs=1e-12)
    assert figures.per_class_acc == pytest.approx(accs, nan_ok=True, abs=1e-12)
    for mean, values in ((figures.miou, ious), (figures.macc, accs)):
        there = [value for value in values if not math.isnan(value)]
        assert mean == pytest.approx(sum(there) / len(there) if there else math.nan, nan_ok=True, abs=1e-12)
    whole = sum(right) / sum(truth) if sum(truth) else math.nan
    assert figures.pixel_accuracy == pytest.approx(whole, nan_ok=True, abs=1e-12)


class Guess(nn.Module):
    """Class 1 wherever the red channel says so."""

    def forward(self, images):
        red = images[:, :1].float()
        return SegOutput(torch.cat([torch.full_like(red, 0.5), red], 1), {}, None)


class Scenes:
    num_classes = 2

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        label = torch.full((2, 3), index % 2, dtype=torch.uint8)
        image = torch.full((3, 2, 3), int(index % 3 == 0), dtype=torch.uint8)
        return {"image": image, "label": label, "name": str(index)}


@settings(max_examples=settings.default.max_examples // 2)
@given(st.integers(1, 12), st.integers(1, 15))
def test_evaluation_sees_each_sample_once_on_any_number_of_ranks(samples, ranks):
    alone = evaluate(Guess(), Scenes(samples), device="cpu", progress=False)
    names, counts = [], []
    total = torch.zeros(4, 3, dtype=torch.int64)
    for rank in range(ranks):
        with (
            mock.patch("torch.distributed.is_initialized", return_value=True),
            mock.patch("torch.distributed.get_world_size", return_value=ranks),
            mock.patch("torch.distributed.get_rank", return_value=rank),
            # The ranks run one after the other: each adds its counts to those of the ranks before, the last has all.
            mock.patch("torch.distributed.all_reduce", lambda mine: mine.copy_(total.add_(mine))),
        ):
            metrics = evaluate(
                Guess(), Scenes(samples), device="cpu", progress=False,
                on_sample=lambda name, *_: names.append(name),
            )  # fmt: skip
        counts.append(len(names) - sum(counts))
    assert sorted(names, key=int) == [str(index) for index in range(samples)]
    assert max(counts) - min(counts) <= 1
    assert metrics.to_dict() == alone.to_dict()
