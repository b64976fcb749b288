"""Optional packages: each belongs to an extra of pyproject.toml."""

from importlib import import_module
from types import ModuleType


def import_extra(package: str, extra: str) -> ModuleType:
    """Imports a package that ``extra`` installs.

    Raises:
        ValueError: it is not installed, or lacks a package that it needs; the message says how to install it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f'{package} cannot be imported ({error}): pip install ".[{extra}]"') from error
