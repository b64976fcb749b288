"""Boundary IoU against values worked out by hand and against its definition, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from engine.boundary import BoundaryIoU
from engine.metrics import ConfusionMatrix


def measure(prediction, label, classes=2):
    boundary = BoundaryIoU(classes)
    boundary.update(torch.from_numpy(prediction), torch.from_numpy(label))
    return boundary.compute()


def square(top, left, size=10, extent=20):
    mask = np.zeros((extent, extent), np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


def test_a_square_moved_by_one_pixel_by_hand():
    # d is 1. The ring of a 10 x 10 square has 36 pixels; the two rings share 9 pixels of the top and of the bottom row.
    # Around each square is a ring of 44 pixels, which share 2 x 11; the image's own ring has 76, and they share all.
    found = measure(square(5, 6), square(5, 5))
    assert found["per_class_boundary_iou"] == pytest.approx([(76 + 22) / (240 - 98), 18 / (72 - 18)])
    assert found["boundary_miou"] == pytest.approx((98 / 142 + 1 / 3) / 2)


def test_the_boundary_is_two_per_cent_of_the_diagonal_wide():
    # Diagonal 500, so d is 10: of a 100 x 100 square 80 x 80 pixels are inside, and only the truth has the square.
    label = np.zeros((300, 400), np.uint8)
    label[100:200, 100:200] = 1
    boundary = BoundaryIoU(2)
    boundary.update(torch.zeros(300, 400, dtype=torch.uint8), torch.from_numpy(label))
    assert boundary.counts[1, 1] == 100 * 100 - 80 * 80
    # Class 0: the image's ring, and in the truth also the ring of the square, which is outside it.
    ring = 300 * 400 - 280 * 380
    assert boundary.counts[:, 0].tolist() == [ring, ring + 120 * 120 - 100 * 100, ring]


def by_definition(prediction, label, classes):
    """IoU of the regions of each class, each pixel's window searched on its own."""
    height, width = label.shape
    d = max(1, int(round(0.02 * math.sqrt(height**2 + width**2))))
    prediction = np.where(label == 255, 255, prediction)

    def region(values, k):
        found = set()
        for y, x in zip(*np.nonzero(values == k), strict=True):
            neighbours = values[max(0, y - d) : y + d + 1, max(0, x - d) : x + d + 1]
            outside = min(y, x) < d or y + d >= height or x + d >= width
            if outside or ((neighbours != k) & (neighbours != 255)).any():
                found.add((y, x))
        return found

    pairs = [(region(label, k), region(prediction, k)) for k in range(classes)]
    return [len(t & p) / len(t | p) if t | p else math.nan for t, p in pairs]


@pytest.mark.parametrize("shape", [(1, 1), (1, 120), (37, 24), (50, 75), (90, 110)])
@pytest.mark.parametrize("void", [0, 0.1, 0.6])
def test_equals_the_definition_on_blobs(shape, void):
    rng = np.random.default_rng(3)
    coarse = [rng.integers(0, 4, (12, 12)).astype(np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(2)]
    label, guess = (blobs[: shape[0], : shape[1]].copy() for blobs in coarse)
    prediction = np.where(rng.random(shape) < 0.98, label, guess)
    label[(rng.random((30, 30)) < void).repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]] = 255
    expected = by_definition(prediction, label, 5)
    assert measure(prediction, label, 5)["per_class_boundary_iou"] == pytest.approx(expected, nan_ok=True)


def test_what_is_predicted_in_void_changes_nothing_and_a_perfect_prediction_scores_one():
    rng = np.random.default_rng(0)
    label = square(5, 5) + square(8, 2, size=4)
    label[9:13, 3:17] = 255
    other = np.where(label == 255, rng.integers(0, 3, label.shape), label).astype(np.uint8)
    assert measure(other, label, 3)["per_class_boundary_iou"] == [1, 1, 1]


def test_a_border_with_void_is_no_boundary_but_one_across_a_strip_of_void_is():
    # Class 1 in the middle of void has no known contour. Diagonal 141, so d is 3.
    island = np.full((100, 100), 255, np.uint8)
    island[40:60, 40:60] = 1
    assert math.isnan(measure(island, island)["boundary_miou"])
    # Columns 0..49 are class 0, 50 and 51 are void, then class 1: of class 0 only column 49 is at most 3 from class 1.
    strip = np.zeros((100, 100), np.uint8)
    strip[:, 50:52] = 255
    strip[:, 52:] = 1
    boundary = BoundaryIoU(2)
    boundary.update(torch.from_numpy(strip), torch.from_numpy(strip))
    edges = 3 * 50 * 2 + 3 * 94  # top and bottom rows, and the left column between them
    assert boundary.counts[1, 0] == edges + 94


def test_counts_are_summed_over_the_images_and_classes_without_boundary_are_left_out():
    whole = BoundaryIoU(3)
    pairs = [(square(5, 6), square(5, 5)), (square(2, 2), square(4, 4))]
    for prediction, label in pairs:
        whole.update(torch.from_numpy(prediction), torch.from_numpy(label))
    # Rings of 36 pixels: 18 shared in the first image; in the second only where row 4 meets column 11 and vice versa.
    found = whole.compute()
    assert found["per_class_boundary_iou"][1] == pytest.approx((18 + 2) / (4 * 36 - 20))
    assert math.isnan(found["per_class_boundary_iou"][2])
    assert found["boundary_miou"] == pytest.approx(np.mean(found["per_class_boundary_iou"][:2]))


def test_labels_out_of_range_are_left_to_the_confusion_matrix():
    label = torch.full((4, 4), 254, dtype=torch.uint8)
    boundary, confusion = BoundaryIoU(2), ConfusionMatrix(2)
    for counter in (boundary, confusion):
        counter.update(torch.zeros_like(label), label)
    assert boundary.compute()["per_class_boundary_iou"][0] == 0
    with pytest.raises(ValueError, match="16 label pixels are outside"):
        confusion.compute()
