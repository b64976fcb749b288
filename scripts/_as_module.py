"""Imported by a script that runs as a file: replaces the process by ``python -m scripts.NAME``, from any folder.

Then the repository's root is on the import path, also of child processes.
"""

import os
import subprocess
import sys
from pathlib import Path

file = Path(sys.modules["__main__"].__file__).resolve()
paths = [str(file.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
command = [sys.executable, "-m", f"scripts.{file.stem}", *sys.argv[1:]]
environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
if os.name == "nt":  # there execve starts a second process, and the shell does not wait for it
    sys.exit(subprocess.run(command, env=environment).returncode)
os.execve(sys.executable, command, environment)
