"""Tables of a dry run and of labels, the panel of predictions, and the summary at the end of a run."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from datasets.base import SegDataset
from datasets.census import Census, Value
from engine.metrics import ConfusionMatrix
from models.inference import predict
from utils.names import VOID
from utils.visualize import ERROR_COLORS, Color, colorize, error_map, panel


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain-text columns, the first one aligned left and the others right."""
    rows = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    rows.insert(1, ["-" * width for width in widths])
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds for one image of ``size`` (H, W) in evaluation: of the 'backbone', the 'head', and their 'total'.

    A multiplication and its addition count as one, as in the field's papers (``FlopCounterMode`` counts two). Only
    convolutions, linear layers and the matrix products of attention count. A copy on the meta device is used, so
    nothing is computed.

    Raises:
        ValueError: the network is of another library and reads values while it runs.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            shadow(torch.empty(1, 3, *size, dtype=torch.uint8, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"the operations cannot be counted, because the network reads values: {error}") from error
    found = {module: sum(operators.values()) // 2 for module, operators in counter.get_flop_counts().items()}
    total, inner = found["Global"], getattr(shadow, "backbone", None)
    path = next((path for path, module in shadow.named_modules() if module is inner), None)
    # A feature network of timm is not called as a module, so nothing was counted under its name.
    backbone = found.get(f"{type(model).__name__}.{path}", 0 if path is None else total)
    return {"backbone": backbone, "head": total - backbone, "total": total}


def network_table(networks: Mapping[str, nn.Module], size: tuple[int, int]) -> str:
    """Parameters, GFLOPs (multiply-adds) at ``size`` (H, W) and taps (channels at stride) of each network."""
    rows = []
    for name, model in networks.items():
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        taps = " ".join(f"{tap}:{info.channels}@{info.stride}" for tap, info in model.spec.taps.items())
        try:
            operations = f"{multiply_adds(model, size)['total'] / 1e9:.1f}"
        except ValueError:
            operations = "not counted"
        rows.append([name, f"{parameters:.2f} M", operations, taps])
    return table(["network", "parameters", f"GFLOPs at {size[0]}x{size[1]}", "taps (channels@stride)"], rows)


def census_table(splits: Mapping[str, Census], class_names: Sequence[str]) -> str:
    """Share of each class, and of void, in all pixels of each split, and the images in which it occurs."""
    totals = {name: max(1, int(census.pixels.sum()) + census.void) for name, census in splits.items()}
    rows = [
        [class_name]
        + [
            cell
            for split, census in splits.items()
            for cell in (f"{100 * census.pixels[k] / totals[split]:.2f} %", f"{census.occurs[k]} of {census.images}")
        ]
        for k, class_name in enumerate(class_names)
    ]
    void = [cell for split, census in splits.items() for cell in (f"{100 * census.void / totals[split]:.2f} %", "")]
    header = [f"{split} {what}" for split in splits for what in ("pixels", "images")]
    return table(["class", *header], [*rows, ["(void)", *void]])


def value_table(splits: Mapping[str, Mapping[tuple[Value, int], int]], class_names: Sequence[str], shown: int) -> str:
    """The values found in label files, the class that each is read as, and its share of the pixels of each split.

    Args:
        splits: by name, the pixels of each (value, train id) (``datasets.census.count_values``).
        class_names: K names.
        shown: at most so many values.
    """
    found = sorted(set().union(*splits.values()), key=lambda pair: (isinstance(pair[0], tuple), pair))
    totals = {name: max(1, sum(values.values())) for name, values in splits.items()}
    rows = [
        [
            f"{value}".replace(" ", ""),
            "(void)" if train == VOID else class_names[train],
            *(f"{100 * values.get((value, train), 0) / totals[split]:.2f} %" for split, values in splits.items()),
        ]
        for value, train in found[:shown]
    ]
    more = f"\n({len(found) - shown} more)" if len(found) > shown else ""
    return table(["value in label files", "read as", *splits], rows) + more


def term_table(weights: Mapping[str, float], terms: Mapping[str, float], norms: Mapping[str, float]) -> str:
    """Each loss term with its weight, its value and the norm of its gradient on the student."""
    rows = [[name, f"{weight:g}", f"{terms[name]:.4f}", f"{norms[name]:.4f}"] for name, weight in weights.items()]
    return table(["term", "weight", "value", "gradient on the student"], rows)


def prediction_panel(
    dataset: Dataset,
    indices: Iterable[int],
    networks: Mapping[str, nn.Module],
    protocols: Mapping[str, Mapping[str, Any]],
) -> np.ndarray:
    """Two rows for each sample: the image beside each network's prediction; below, the truth beside their errors.

    The errors are titled with this image's own mIoU in percent: the mean over the classes that are in its truth or
    predicted where it is labelled.

    Args:
        dataset: gives samples, ``palette`` and ``class_names``.
        indices: the samples shown.
        networks: by the name to show.
        protocols: arguments of ``predict`` for each network.
    """
    rows = []
    for index in indices:
        sample = dataset[index]
        truth = sample["label"]
        above = [("image", sample["image"].permute(1, 2, 0).numpy())]
        below = [("truth", colorize(truth.numpy(), dataset.palette))]
        for name, network in networks.items():
            image = sample["image"].to(next(network.parameters()).device)
            prediction = predict(network, image, **protocols[name])[0].cpu()
            confusion = ConfusionMatrix(len(dataset.class_names))
            confusion.update(prediction, truth)
            miou = confusion.compute().miou
            above.append((name, colorize(prediction.numpy(), dataset.palette)))
            below.append((f"errors (mIoU {100 * miou:.1f})", error_map(prediction.numpy(), truth.numpy())))
        rows += [above, below]
    return panel(rows, class_colors(dataset) | ERROR_COLORS)


def class_colors(dataset: SegDataset) -> dict[str, Color]:
    return {name: tuple(map(int, color)) for name, color in zip(dataset.class_names, dataset.palette, strict=True)}


def batch_panel(images: torch.Tensor, labels: torch.Tensor, dataset: SegDataset) -> np.ndarray:
    """Images of a training batch, B 3 H W uint8, each beside its label, B H W, in the colours of ``dataset``."""
    rows = [
        [("image", image.permute(1, 2, 0).numpy()), ("label", colorize(label.numpy(), dataset.palette))]
        for image, label in zip(images.cpu(), labels.cpu(), strict=True)
    ]
    return panel(rows, class_colors(dataset))
