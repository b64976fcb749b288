"""A picture of samples with their masks drawn over them."""

import numpy as np

from datasets.base import SegDataset
from utils.visualize import overlay, panel

COUNT, COLUMNS = 12, 3


def draw_samples(dataset: SegDataset, seed: int = 0) -> np.ndarray:
    """Twelve samples (or as many as there are) with their classes in colour and a legend -> H W 3 uint8."""
    order = np.random.default_rng(seed).permutation(len(dataset))[:COUNT].tolist()
    columns = min(COLUMNS, len(order))
    cells = []
    for index in sorted(order[: len(order) // columns * columns]):
        image, label = dataset.load(index)
        cells.append((dataset.names[index][-24:], overlay(image, label, dataset.palette)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    legend = dict(zip(dataset.class_names, map(tuple, dataset.palette.tolist()), strict=True))
    return panel(rows, legend)
