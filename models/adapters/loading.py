"""What all adapters share: weights of any file, loaded strictly."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from models.weights.conversion import Layout
from models.weights.load import LoadReport, check_strict
from models.weights.sources import read_weights
from models.weights.tensors import Weights, strip_prefix


def need_weights(source: str, weights: str | None) -> Weights:
    """The weights of a source that has none of its own.

    Raises:
        ValueError: the config names no file; or as ``read_weights``.
        FileNotFoundError: there is no such file.
    """
    if weights is None:
        raise ValueError(f"{source} has random weights: set weights to a file")
    return read_weights(weights)


def load_strictly(module: nn.Module, weights: Weights, kind: str, skip: tuple[str, ...] = ()) -> LoadReport:
    """Loads all tensors of a file into a module; an error leaves it unchanged.

    Args:
        weights: ``read_weights`` has stripped the prefix that all names share.
        kind: of the source, for the report.
        skip: beginnings of names that the module does not have, such as a classifier's.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; names the first ones.
    """
    wanted = module.state_dict()
    # A module inside a module has a prefix of its own, which was stripped too.
    prefix = "" if wanted.keys() & weights.tensors.keys() else strip_prefix(wanted)[1]
    skipped = tuple(key for key in weights.tensors if key.startswith(skip)) if skip else ()
    state = {f"{prefix}{key}": tensor for key, tensor in weights.tensors.items() if key not in skipped}
    check_strict(wanted, state, weights, Layout(kind, "all", frozenset()))
    # The counters of batches may be missing. Some encoders of smp have a load_state_dict of their own.
    nn.Module.load_state_dict(module, state, strict=False)
    return LoadReport(
        weights.source, weights.path, kind, "all", len(state), skipped, None, weights.metadata, weights.notes
    )


def report_own(module: nn.Module, source: str, kind: str, path: Path | None = None) -> LoadReport:
    """The report of a module that came with its weights. Without a path they are known by their values."""
    state, digest = module.state_dict(), hashlib.sha256()
    for name, tensor in state.items() if path is None else ():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return LoadReport(source, path, kind, "all", len(state), (), None, {}, (), digest.hexdigest())
