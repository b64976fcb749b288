import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
from cityscapesscripts.helpers.labels import labels as cityscapes_labels
from PIL import Image

from engine.metrics import ConfusionMatrix

K = 5


def random_maps(seed=0, shape=(2, 9, 7), classes=K):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    label[torch.rand(shape, generator=generator) < 0.2] = 255
    return torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8), label


def figures(prediction, label, classes=K):
    confusion = ConfusionMatrix(classes)
    confusion.update(prediction, label)
    return confusion.compute()


def test_two_by_two_by_hand():
    # truth  0 0     prediction  0 1     class 0: 1 of 2 right, union 2; class 1: 2 right, union 3
    #        1 1                 1 1
    metrics = figures(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 1]]), classes=2)
    assert metrics.per_class_iou == pytest.approx([1 / 2, 2 / 3])
    assert metrics.per_class_acc == pytest.approx([1 / 2, 1])
    assert metrics.miou == pytest.approx(7 / 12)
    assert metrics.macc == pytest.approx(3 / 4)
    assert metrics.pixel_accuracy == pytest.approx(3 / 4)


def test_rows_are_the_truth():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[2, 2, 1]]), torch.tensor([[0, 0, 1]]))
    assert confusion.counts[:3, :3].tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_equals_a_count_pixel_by_pixel():
    prediction, label = random_maps()
    expected = [[0] * K for _ in range(K)]
    for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != 255:
            expected[t][p] += 1
    confusion = ConfusionMatrix(K)
    confusion.update(prediction, label)
    assert confusion.counts[:K, :K].tolist() == expected
    union = [sum(expected[k]) + sum(row[k] for row in expected) - expected[k][k] for k in range(K)]
    assert confusion.compute().per_class_iou == [expected[k][k] / union[k] for k in range(K)]


def test_void_enters_no_figure():
    prediction, label = random_maps()
    other = torch.where(label == 255, (prediction + 1) % K, prediction)
    assert not torch.equal(other, prediction)
    assert figures(other, label) == figures(prediction, label)


def test_parts_batches_and_integer_types_give_the_same_counts():
    prediction, label = random_maps()
    whole, parts = ConfusionMatrix(K), ConfusionMatrix(K)
    whole.update(prediction, label)
    for p, t in zip(prediction, label, strict=True):
        parts.update(p[:4].long(), t[:4].int())
        parts.update(p[4:].int(), t[4:].long())
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == label.numel()


@pytest.mark.parametrize("classes", [1, K, 254])
def test_bytes_are_counted_as_other_integers_are_whatever_they_hold(classes):
    prediction, label = random_maps(shape=(2, 90, 70), classes=256)
    as_bytes, as_longs = ConfusionMatrix(classes), ConfusionMatrix(classes)
    as_bytes.update(prediction.transpose(1, 2), label.transpose(1, 2))
    as_longs.update(prediction.long(), label.long())
    assert torch.equal(as_bytes.counts, as_longs.counts)
    assert int(as_bytes.counts.sum()) == label.numel()


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (1, 6), (6, 1)])
def test_maps_of_any_extent_are_counted(shape):
    confusion = ConfusionMatrix(2)
    confusion.update(torch.ones(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8))
    assert confusion.counts[:2, :2].tolist() == [[0, shape[0] * shape[1]], [0, 0]]


def test_runs_longer_than_float32_holds_are_counted_exactly():
    pixels = torch.ones(2**24 + 4, dtype=torch.uint8)
    pixels[-1] = 0
    confusion = ConfusionMatrix(2)
    confusion.update(pixels, pixels)
    assert confusion.counts[:2, :2].tolist() == [[1, 0], [0, 2**24 + 3]]


def test_absent_classes_are_nan_and_left_out_of_the_means():
    # Class 2 is nowhere; class 3 is predicted once and never true: an IoU of 0, but no accuracy.
    metrics = figures(torch.tensor([[0, 1, 3]]), torch.tensor([[0, 1, 1]]), classes=4)
    assert metrics.per_class_iou[:2] == [1, 1 / 2]
    assert math.isnan(metrics.per_class_iou[2])
    assert metrics.per_class_iou[3] == 0
    assert math.isnan(metrics.per_class_acc[2])
    assert math.isnan(metrics.per_class_acc[3])
    assert metrics.miou == pytest.approx(1.5 / 3)
    assert metrics.macc == pytest.approx(1.5 / 2)


def test_nothing_labelled_gives_nan_not_an_error():
    metrics = figures(torch.zeros(2, 2, dtype=torch.uint8), torch.full((2, 2), 255, dtype=torch.uint8))
    assert math.isnan(metrics.miou)
    assert math.isnan(metrics.pixel_accuracy)


@pytest.mark.parametrize("bad", [K, 254, -1, 256])
def test_labels_out_of_range_are_refused(bad):
    confusion = ConfusionMatrix(K)
    confusion.update(torch.zeros(1, 3).long(), torch.tensor([[0, bad, 255]]))
    with pytest.raises(ValueError, match="1 label pixels are outside 0..4"):
        confusion.compute()


@pytest.mark.parametrize("bad", [K, -1, 255])
def test_predictions_out_of_range_are_refused(bad):
    confusion = ConfusionMatrix(K)
    confusion.update(torch.tensor([[0, bad, bad]]), torch.tensor([[0, 1, 255]]))
    with pytest.raises(ValueError, match="2 predicted pixels are outside 0..4"):
        confusion.compute()


def test_wrong_shapes_types_and_class_counts_are_refused():
    confusion = ConfusionMatrix(K)
    with pytest.raises(ValueError, match=r"prediction is \(2, 3\), label \(3, 2\)"):
        confusion.update(torch.zeros(2, 3).long(), torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="prediction is torch.float32"):
        confusion.update(torch.zeros(2, 3), torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="num_classes is 256"):
        ConfusionMatrix(256)


def test_dict_is_strict_json():
    metrics = figures(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), classes=3)
    read = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert read == {
        "per_class_iou": [0.5, 0.0, None],
        "per_class_acc": [0.5, None, None],
        "miou": 0.25,
        "macc": 0.5,
        "pixel_accuracy": 0.5,
        "confusion_matrix": [[1, 1, 0], [0, 0, 0], [0, 0, 0]],
    }


def test_the_mean_says_over_how_many_classes_it_is():
    truth, prediction = torch.tensor([[0, 1]]), torch.tensor([[0, 0]])
    assert figures(truth, prediction, classes=3).coverage == "over 2 of 3 classes"
    whole = figures(truth, prediction, classes=2)
    assert whole.coverage == ""
    assert [line.split()[0] for line in whole.table(["a", "b"]).splitlines()[5:]] == ["mean", "pixel"]


def test_table_is_aligned_and_in_percent():
    metrics = figures(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), classes=3)
    lines = metrics.table(["road", "traffic light", "sky"]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["road", "50.00", "50.00"]
    assert lines[3].split() == ["traffic", "light", "0.00", "-"]
    assert lines[4].split() == ["sky", "-", "-"]
    assert lines[6].split() == ["mean", "over", "2", "of", "3", "classes", "25.00", "50.00"]
    assert lines[7].split() == ["pixel", "accuracy", "50.00"]
    lines = replace(metrics, per_class_boundary_iou=[0.25, 1, math.nan], boundary_miou=0.625).table(["a", "b", "c"])
    lines = lines.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["class", "IoU", "%", "boundary", "IoU", "%", "acc", "%"]
    assert lines[2].split() == ["a", "50.00", "25.00", "50.00"]
    assert lines[6].split()[-3:] == ["25.00", "62.50", "50.00"]
    assert lines[7].split() == ["pixel", "accuracy", "50.00"]
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        metrics.table(["road", "sky"])


def test_equals_the_official_cityscapes_evaluator(tmp_path, monkeypatch):
    evaluated = [label for label in cityscapes_labels if not label.ignoreInEval and label.id >= 0]
    evaluated.sort(key=lambda label: label.trainId)
    assert [label.trainId for label in evaluated] == list(range(19))
    void_ids = [label.id for label in cityscapes_labels if label.ignoreInEval and label.id >= 0]
    to_train = np.full(256, 255, np.uint8)
    to_train[[label.id for label in evaluated]] = range(19)
    to_id = np.array([label.id for label in evaluated], np.uint8)

    rng = np.random.default_rng(0)
    confusion = ConfusionMatrix(19)
    truths, predictions = [], []
    for i in range(3):
        # Train ids 17 and 18 are never true and 18 is never predicted: an IoU of 0 and a nan.
        truth = rng.choice([*to_id[:17], *void_ids], (24, 40)).astype(np.uint8)
        guess = rng.integers(0, 18, (24, 40), dtype=np.uint8)
        prediction = np.where((rng.random((24, 40)) < 0.7) & (to_train[truth] < 19), to_train[truth], guess)
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(to_train[truth]))
        truths.append(str(tmp_path / f"city_00000{i}_000000_gtFine_labelIds.png"))
        predictions.append(str(tmp_path / f"city_00000{i}_000000_pred.png"))
        Image.fromarray(truth).save(truths[-1])
        Image.fromarray(to_id[prediction]).save(predictions[-1])

    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(evalPixelLevelSemanticLabeling.args, name, value)
    expected = evalPixelLevelSemanticLabeling.evaluateImgLists(predictions, truths, evalPixelLevelSemanticLabeling.args)

    metrics = confusion.compute()
    scores = [expected["classScores"][label.name] for label in evaluated]
    assert scores[17] == 0
    assert math.isnan(scores[18])
    assert metrics.per_class_iou == pytest.approx(scores, abs=1e-12, nan_ok=True)
    assert metrics.miou == pytest.approx(expected["averageScoreClasses"], abs=1e-12)
