"""Lets ``python scripts/NAME.py`` find the repository's packages, from any folder."""

import os
import sys
from pathlib import Path


def restart_as_module(file: str) -> None:
    """Starts ``scripts/NAME.py`` again as ``python -m scripts.NAME``, with the repository's root on the import path."""
    root = str(Path(file).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", f"scripts.{Path(file).stem}", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
