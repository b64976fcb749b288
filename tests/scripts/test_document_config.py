"""docs/config.md is what the schema and the docstrings give, and no key is left out."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import pytest
from pydantic import Field

from configs.schema import Experiment
from scripts.document_config import OUT, argument_docs, document, key_comments, table, type_text
from utils.config import Section


def test_the_page_is_current():
    assert OUT.read_text() == document(), "run: python scripts/document_config.py"


@pytest.mark.parametrize(
    "line",
    [
        "| `lr` | float > 0 | required | Learning rate of the backbone, before the schedule. |",
        "| `output_stride` | 8 or 16 or 32, or None | `None` | ",
        "| `class_names` | tuple of str | required | ",
        "| `feature_pairs` | tuple of (str, str) | `(('stage3', 'stage3'),)` | ",
        "| `curriculum` | dict of str to section | `{}` | ",
        "| `eval` | section | its defaults | ",
        '### distill with type="hmkd"\n',
        '### data with type="list"\n',
    ],
)
def test_keys_of_every_kind_are_on_the_page(line):
    assert line in document()


Share = Annotated[float, Field(gt=0, le=1)]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (Share, "float > 0 and <= 1"),
        (Annotated[int, Field(ge=0, lt=2**63)], "int >= 0"),
        (Share | None, "float > 0 and <= 1, or None"),
        (str | None, "str or None"),
        (tuple[Share, int], "(float > 0 and <= 1, int)"),
        (tuple[Share, ...], "tuple of float > 0 and <= 1"),
        (Sequence[tuple[str, str]], "tuple of (str, str)"),
        (Mapping[int, str], "dict of int to str"),
        (Literal["a", "b"], "'a' or 'b'"),
        (Experiment | None, "section or None"),
    ],
)
def test_types_in_words(annotation, text):
    assert type_text(annotation) == text


def test_arguments_are_read_from_the_docstring():
    def build(a, b, c):
        """One.

        Args:
            a, b: two of
                them.
            c: the third: ``x``.

        Raises:
            ValueError: never.
        """

    assert argument_docs(build) == {"a": "two of them.", "b": "two of them.", "c": "the third: ``x``."}


def test_an_argument_without_its_own_text_has_that_of_a_base_class():
    class Base:
        """One.

        Args:
            size: the size of it.
            shape: any.
        """

    class Derived(Base):
        """One.

        Args:
            shape: round.
        """

    assert argument_docs(Derived) == {"size": "the size of it.", "shape": "round."}


def test_comments_are_read_above_a_key_and_on_its_line():
    comments = key_comments(Experiment)
    assert comments["student"] == "The network that is trained."
    assert comments["custom_imports"].startswith("Your modules")


def test_a_key_that_nobody_explains_is_an_error():
    class Bare(Section):
        size: int

    with pytest.raises(ValueError, match="Bare says nothing about 'size'"):
        table(Bare, ["size"], {}, "Bare")
