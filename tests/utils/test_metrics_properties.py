"""The counts of any maps equal those made pixel by pixel in Python; evaluation shards hold each sample once."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.base import SegOutput
from utils.evaluation import evaluate
from utils.metrics import ConfusionMatrix

TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


@st.composite
def maps(draw):
    """K, and a prediction and a label in runs, as nested lists of one shape; some values are out of range."""
    K = draw(st.sampled_from([1, 2, 5, 11, 19, 150, 253, 254, 255]))
    height, width = draw(st.integers(0, 6)), draw(st.integers(1, 9))
    inside = st.integers(0, K - 1)
    # Ids of an image are few: a palette first, so that neighbours agree and runs are long.
    labels = draw(st.lists(inside | st.just(255), min_size=1, max_size=4))
    predictions = draw(st.lists(inside, min_size=1, max_size=4))
    if draw(st.integers(0, 9)) == 0:
        labels.append(draw(st.integers(0, 255)))
        predictions.append(draw(st.integers(0, 255)))

    def plane(values):
        row = st.lists(st.sampled_from(values), min_size=width, max_size=width)
        return draw(st.lists(row, min_size=height, max_size=height))

    return K, (height, width), plane(predictions), plane(labels)


@given(maps(), st.sampled_from(TYPES), st.sampled_from(TYPES), st.booleans())
def test_any_maps_are_counted_as_pixel_by_pixel(case, prediction_type, label_type, transposed):
    K, size, predictions, labels = case
    prediction = torch.tensor(predictions, dtype=prediction_type).view(size)
    label = torch.tensor(labels, dtype=label_type).view(size)
    if transposed:  # not contiguous
        prediction, label = prediction.T, label.T
    confusion = ConfusionMatrix(K)
    confusion.update(prediction, label)
    confusion.update(prediction[None], label[None])
    expected, bad_labels, bad_predictions = {}, 0, 0
    for row in zip(predictions, labels, strict=True):
        for p, t in zip(*row, strict=True):
            bad_labels += t >= K and t != 255
            bad_predictions += p >= K
            if t < K and p < K:
                expected[t, p] = expected.get((t, p), 0) + 2
    found = confusion.counts[:K, :K]
    assert {tuple(where): int(found[tuple(where)]) for where in found.nonzero().tolist()} == expected
    assert int(confusion.counts.sum()) == 2 * label.numel()
    if bad_labels or bad_predictions:
        with pytest.raises(ValueError, match="label pixels are outside" if bad_labels else "predicted pixels"):
            confusion.compute()
        return
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
                Guess(), Scenes(samples), device="cpu", rank=rank, world_size=ranks, progress=False,
                on_sample=lambda name, *_: names.append(name),
            )  # fmt: skip
        counts.append(len(names) - sum(counts))
    assert sorted(names, key=int) == [str(index) for index in range(samples)]
    assert max(counts) - min(counts) <= 1
    assert metrics.to_dict() == alone.to_dict()
