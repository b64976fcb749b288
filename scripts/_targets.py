"""Figures of a method's targets: of the teacher's feature map, after each step that turns it into the target."""

import copy

import torch
from torch import Tensor

from losses.base import Method
from losses.labels import Labels
from models.base import SegOutput

CELLS = 4096  # of a map and a batch that are measured, at most
Outputs = tuple[SegOutput, SegOutput, Labels]  # the student's, the teacher's, labels


def centred(x: Tensor) -> Tensor:
    return x.double() - x.double().mean(0)


def share_between(x: Tensor, groups: Tensor) -> float:
    """Share of the variance of x (N C), summed over channels, that lies between the means of its groups (N ids)."""
    x = centred(x)
    _, group, counts = groups.unique(return_inverse=True, return_counts=True)
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, group, x) / counts[:, None]
    return (means[group].square().sum() / x.square().sum()).item()


def participation_ratio(x: Tensor) -> float:
    """(sum of eigenvalues)^2 / sum of squared eigenvalues of the covariance of x (N C): 1 to C dimensions."""
    products = centred(x).T @ centred(x)  # the covariance times N
    return (products.trace() / products.norm()).square().item()


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of x (N C) and y (N D), Kornblith et al., ICML 2019: 0 to 1."""
    x, y = centred(x), centred(y)
    return ((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


@torch.no_grad()
def labelled_cells(method: Method, batches: list[Outputs]) -> dict[tuple[str, str], list[Tensor]]:
    """(term, step) -> vectors N C of labelled cells, their classes N and their images N; the method does not change."""
    method, found = copy.deepcopy(method), {}
    for number, (student, teacher, labels) in enumerate(batches):
        for term, steps in method.targets(student, teacher, labels).items():
            for step, x in steps.items():
                grid = labels.on(x.shape[-2:])
                cells = grid.labelled.flatten().nonzero()[:, 0]
                cells = cells[:: len(cells) // CELLS + 1]
                images = number * len(x) + cells // grid.ids[0].numel()
                parts = x.movedim(1, -1).flatten(0, 2)[cells], grid.ids.flatten()[cells], images
                found.setdefault((term, step), []).append([part.cpu() for part in parts])
    return {key: [torch.cat(parts) for parts in zip(*every, strict=True)] for key, every in found.items()}


def measure_targets(untrained: Method, trained: Method, batches: list[Outputs]) -> dict[str, dict[str, dict]]:
    """For each target and each step: its figures with the untrained and with the trained method, on labelled cells.

    - ``spatial_kept``: share of the variance that lies within the images, not between their means; divided by that of
      the step before. It does not depend on the map's scale; a step that averages each image away has 0.
    - ``dimensions``: ``participation_ratio``.
    - ``class_share``: of the variance, ``share_between`` the classes.
    - ``cka``: of the map before and after. 1 for a target that does not learn: it has not drifted.
    """
    found, last = {}, {}
    before, after = (labelled_cells(method, batches) for method in (untrained, trained))
    for (term, step), cells in before.items():
        facts = {"cka": cka(cells[0], after[term, step][0])}
        for time, (x, classes, images) in (("before", cells), ("after", after[term, step])):
            spatial = 1 - share_between(x, images)
            previous = last.get((term, time), spatial)
            facts[f"spatial_kept_{time}"] = spatial / previous if previous else 0.0
            facts[f"dimensions_{time}"] = participation_ratio(x)
            facts[f"class_share_{time}"] = share_between(x, classes)
            last[term, time] = spatial
        found.setdefault(term, {})[step] = facts
    return found
