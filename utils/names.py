"""What every folder shares: the two label values that are not a class, and the registry of components by name."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn, TypeVar

VOID = 255  # inside the image, without a class: losses on the labels and scores ignore it
OUTSIDE = 254  # padding around the image
LISTED = 60  # an error lists at most this many choices

Component = TypeVar("Component")


def did_you_mean(name: str, choices: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """The choice nearest to a wrong name, then all choices (or only ``shown``) if they are not too many.

    >>> did_you_mean("lrr", ["lr", "betas"])
    "did you mean 'lr'? choices: betas, lr"
    """
    choices = sorted(set(choices))
    shown = choices if shown is None else sorted(shown)
    near = get_close_matches(str(name), choices, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else ""
    listed = f"choices: {', '.join(shown) or 'none'}" if len(shown) <= LISTED else ""
    return f"{hint} {listed}".strip()


def unknown_name(kind: str, name: str, choices: Iterable[str], shown: Iterable[str] | None = None) -> ValueError:
    """The error for a name that is not among the choices."""
    return ValueError(f"unknown {kind} {name!r}; {did_you_mean(name, choices, shown)}")


def name_some(names: Iterable[str], shown: int = 5) -> str:
    """``'a, b and 3 more'``"""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


class Registry(dict[str, Component]):
    """Components by name. Each registers itself where it is defined; a name that is not there is a ValueError.

    >>> HEADS = Registry("head")
    >>> @HEADS.register("mine")
    ... class MyHead: ...
    >>> HEADS["mine"] is MyHead
    True
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Component], Component]:
        """Decorator that adds a class or function under ``name``.

        Raises:
            ValueError: another component has this name.
        """

        def add(component: Component) -> Component:
            first = self.setdefault(name, component)
            if first is not component:
                raise ValueError(
                    f"the {self.kind} {name!r} is registered twice, in {first.__module__} and in "
                    f"{component.__module__}: give one of them another name"
                )
            return component

        return add

    def __missing__(self, name: str) -> NoReturn:
        raise unknown_name(self.kind, name, self)
