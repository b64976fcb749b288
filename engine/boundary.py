"""Boundary IoU: how well a network draws the contours of the classes.

Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021, equation 2.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.distributed import all_reduce_sum
from utils.names import VOID

WIDTH = 0.02  # d / image diagonal


class BoundaryIoU:
    """Counts the pixels of the inner boundary regions of all classes, in the truth and in the prediction.

    The inner boundary region of a class holds its pixels that have a pixel of another class, or the outside of the
    image, at most d pixels away in both directions, where d is 2 % of the image's diagonal, rounded, and at least 1.

    The paper measures objects. This is its semantic form: the pixels of a class are one mask, and its counts are summed
    over the images, as those of mIoU are.

    Void pixels do not count, and a border with void is no boundary, in truth or prediction: nobody knows which class
    lies behind it. Two classes with a strip of void between them still have a boundary if they are at most d apart. So
    a perfect prediction scores 1. (The authors' program differs: there a border of the truth with void is a boundary.)
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.counts = np.zeros((3, 256), np.int64)  # of each value: in both regions, in the truth's, in the predicted

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Counts one image: H W uint8 on the CPU, classes 0..K-1; the label also has 255 for void."""
        prediction, label = prediction.numpy(), label.numpy()
        distance = max(1, round(WIDTH * math.hypot(*label.shape)))
        truth = _boundary_regions(label, distance)
        predicted = _boundary_regions(np.where(label == VOID, label, prediction), distance)
        for count, pixels in zip(self.counts, (truth[truth == predicted], truth, predicted), strict=True):
            count += np.bincount(pixels.ravel(), minlength=256)

    def compute(self) -> dict[str, list[float] | float]:
        """The fields of ``SegMetrics`` for boundary IoU, over the images of all ranks. Every rank calls it.

        A class without a boundary in truth and prediction has nan and is left out of the mean.
        """
        shared, truth, predicted = all_reduce_sum(torch.tensor(self.counts))[:, : self.num_classes].double()
        iou = shared / (truth + predicted - shared)
        return {"per_class_boundary_iou": iou.tolist(), "boundary_miou": iou.nanmean().item()}


def _boundary_regions(classes: np.ndarray, distance: int) -> np.ndarray:
    """``classes`` with void outside the boundary regions.

    A pixel is inside its class where the lowest and the highest class of its window are its own. Void is the highest
    value, so it does not change the lowest; it is set to 0 so that it does not change the highest either.
    """
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    lowest = cv2.erode(classes, window)
    known = classes * (classes != VOID)
    highest = cv2.dilate(known, window, borderType=cv2.BORDER_CONSTANT, borderValue=VOID)  # outside: another class
    return np.where((lowest == classes) & (highest == classes), np.uint8(VOID), classes)
