"""Files that are either whole or absent."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from utils.console import say

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes ``content`` beside ``path``, flushes it to disk and renames it: the old file stays whole until then.

    Raises:
        OSError: naming ``path``, if it cannot be written; on a full disk, with the room needed and the room there is.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in OUT_OF_SPACE:
            temporary.unlink(missing_ok=True)  # what it takes is free again when the room is measured
            free = shutil.disk_usage(path.parent).free
            reason += f": {len(content) / 2**20:.1f} MiB are needed, {free / 2**20:.1f} MiB are free"
        raise OSError(f"cannot write {path} ({reason}); what was there is as it was") from error
    finally:
        if temporary.is_file():
            temporary.unlink()


def remove_temporaries(folder: str | Path) -> None:
    """Removes what writers that were killed left behind; only where no other process writes."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink()


def _flush_folder(folder: Path) -> None:
    """So that a rename, too, outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCK = ".lock"


@contextmanager
def lock_work_dir(work_dir: Path) -> Iterator[None]:
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


def open_locked(path: Path, inherited: bool = False, wait: bool = False) -> TextIO:
    """Opens a text file at its start and locks it: no other process can, until the file is closed or the process ends.

    The lock is the operating system's, so that no killed process leaves one behind. On Windows there is none.

    Args:
        inherited: a child process that is given the descriptor holds the lock too, to the end of its life. Otherwise
            no child does: a loader's workers outlive a killed run by seconds.
        wait: wait for the process that holds the lock, instead of an error.

    Raises:
        BlockingIOError: another process holds it; the error's text is what the file says.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - lives as long as the lock
    file.seek(0)
    if os.name == "nt":
        return file
    import fcntl

    lock = fcntl.flock if inherited else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        with file:
            raise BlockingIOError(file.read()) from None
    return file


def _lock(work_dir: Path) -> TextIO:
    """The lock file of a run's folder, locked."""
    path = work_dir / LOCK
    while True:
        try:
            file = open_locked(path)
        except BlockingIOError as error:
            owner = str(error) or "it has just started"
            raise ValueError(
                f"{work_dir}: another run is at work there ({owner}); wait for its end, or choose another --work-dir"
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # the run before ended and removed this file between our opening and locking it
