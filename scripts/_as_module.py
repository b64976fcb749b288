"""Makes ``python scripts/NAME.py`` find the repository's packages, from any folder."""

import os
import subprocess
import sys
from pathlib import Path


def restart_as_module(file: str) -> None:
    """Replaces this process by ``python -m scripts.NAME``, with the repository's root on the import path."""
    root = str(Path(file).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", f"scripts.{Path(file).stem}", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if os.name == "nt":  # there execve starts a second process, and the shell does not wait for it
        sys.exit(subprocess.run(command, env=environment).returncode)
    os.execve(sys.executable, command, environment)
