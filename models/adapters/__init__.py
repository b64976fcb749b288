"""Networks that other libraries built, by ``KIND:NAME``: each file adapts one library to ``WrappedModel``."""

from collections.abc import Mapping
from typing import Any

from models.adapters import hugging_face, python_function, smp, timm_features, torchvision_models
from models.adapters.wrapped import SOURCES, TRAINED, WrappedModel
from models.base import Normalization
from models.weights.load import LoadReport
from utils.names import unknown_name


def split_source(source: str) -> tuple[str, str]:
    """``'timm:resnet18'`` -> ``('timm', 'resnet18')``.

    Raises:
        ValueError: the kind is unknown, or there is no name.
    """
    kind, _, name = source.partition(":")
    if kind not in SOURCES:
        raise unknown_name("kind of source", kind, SOURCES)
    if not name:
        raise ValueError(f"source is {source!r}; expected '{kind}:' and a name or path")
    return kind, name


def build_wrapped(
    source: str,
    weights: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    **replaced: Any,
) -> tuple[WrappedModel, LoadReport]:
    """A network of another library, with its weights.

    Args:
        source: ``'KIND:NAME'``, the kind one of ``SOURCES``.
        weights: file with its weights; None: the source has them.
        num_classes: K of a network to train, which gets random weights, or those that a function of the user loads;
            None: of a teacher, whose weights decide.
        replaced: values of ``Source`` instead of the adapter's; None keeps those.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the library is not installed, refuses the source, or as ``WrappedModel``; or a network to train has
            other classes, or the library gives only trained ones.
    """
    kind, name = split_source(source)
    if num_classes is not None and kind not in TRAINED:
        raise ValueError(f"{source} is no network to train; expected one of {', '.join(TRAINED)}")
    trained = {} if num_classes is None else {"num_classes": num_classes}
    found = SOURCES[kind](name, weights, dict(arguments or {}), **trained)
    found = found._replace(**{name: value for name, value in replaced.items() if value is not None})
    if found.normalization is None and found.report and "normalization" in found.report.metadata:
        found = found._replace(normalization=Normalization.of(found.report.metadata["normalization"]))
    if found.normalization is None:
        raise ValueError(f"{source} does not say how its images are normalised: set normalization")
    model = WrappedModel(found)
    if num_classes not in (None, model.num_classes):
        raise ValueError(
            f"{source} with arguments {arguments} has {model.num_classes} classes, and the data has {num_classes}: set "
            "the argument that chooses their number"
        )
    return model, found.report
