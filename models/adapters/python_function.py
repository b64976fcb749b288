"""``python:package.module:function``: any module that a function of the user returns."""

from importlib import import_module
from typing import Any

from torch import nn

from models.adapters.loading import load_strictly, report_own
from models.adapters.wrapped import SOURCES, Source
from models.weights.sources import read_weights


@SOURCES.register("python")
def from_function(name: str, weights: str | None, arguments: dict[str, Any], num_classes: int | None = None) -> Source:
    """The module that a function returns, called with the arguments of the config, ``num_classes`` not among them.

    Raises:
        ValueError: it cannot be imported or called, or returns something else.
    """
    path, _, function = name.partition(":")
    try:
        network = getattr(import_module(path), function)(**arguments)
    except Exception as error:  # a module is a program: anything may go wrong in it
        raise ValueError(
            f"python:{name} with arguments {arguments}: {type(error).__name__}: {error}; expected "
            "python:package.module:function, on PYTHONPATH or in custom_imports"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"python:{name} returned a {type(network).__name__}; expected a torch.nn.Module")
    if weights is None:
        return Source(network, report_own(network, f"python:{name}", "python"))
    return Source(network, load_strictly(network, read_weights(weights), "python"))
