"""One run at a time in a folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from utils.files import remove_temporaries
from utils.log import say

LOCK = ".lock"


@contextmanager
def sole_run_in(work_dir: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, and clears away the unfinished files of a run that was killed there.

    The lock is the operating system's and ends with the process, however it ends; the file only tells whose it is. It
    is a record lock, which a process shares with none of its children: a loader's workers outlive a killed run by
    seconds. A folder that was made for the run and stayed empty is removed again.

    Raises:
        ValueError: another run holds it, with its process and host; or ``work_dir`` is a file or cannot be made.
    """
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f"--work-dir {work_dir} is a file; expected a folder, which is made where it is missing")
    made = not work_dir.exists()
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--work-dir {work_dir} cannot be made ({error.strerror}); choose another") from None
    file = _lock(work_dir)
    try:
        if owner := file.read():
            say(f"{work_dir}: the run that was here ({owner}) ended without a word; going on in its place")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        remove_temporaries(work_dir)
        yield
    finally:
        (work_dir / LOCK).unlink()
        file.close()
        if made and not any(work_dir.iterdir()):
            work_dir.rmdir()


def _lock(work_dir: Path) -> TextIO:
    """The lock file, locked, to be read from its start."""
    path = work_dir / LOCK
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - lives as long as the run
        file.seek(0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = file.read() or "it has just started"
            file.close()
            raise ValueError(
                f"{work_dir}: another run is at work there ({owner}); wait for its end, or choose another --work-dir"
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # the run before ended and removed this file between our opening and locking it
