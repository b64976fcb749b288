"""What the commands share: the layout of ``--help``, an option, and errors in one line."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def command_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` shows a module's docstring and then examples, with their line breaks."""
    return argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config_options(parser: argparse.ArgumentParser, meaning: str = "override config values") -> None:
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help=meaning)


@contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process in one line on standard error, with exit status 1, where a user can do something about it.

    Args:
        interrupted: what is printed after Ctrl-C.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:  # PyTorch has no common type for a full memory
        if "memory" not in str(error):
            raise
        sys.exit(f"error: not enough memory; smaller images or batches need less: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit(interrupted)
