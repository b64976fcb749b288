"""Writes files atomically, and locks files and the folder of a run."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from utils.console import say

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def user_path(text: str) -> Path:
    """A path given to an option. Shells do not replace the ``~`` of ``--option=~/folder`` by the home folder."""
    return Path(os.path.expanduser(text))


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes ``content`` to a temporary file beside ``path``, flushes it to disk and renames it to ``path``.

    Raises:
        OSError: ``path`` cannot be written; on a full disk, with the space that is needed and the space that is free.
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
            temporary.unlink(missing_ok=True)  # before the free space is measured
            free = shutil.disk_usage(path.parent).free
            reason += f": {len(content) / 2**20:.1f} MiB are needed, {free / 2**20:.1f} MiB are free"
        raise OSError(f"cannot write {path} ({reason}); an earlier file is unchanged") from error
    finally:
        if temporary.is_file():
            temporary.unlink()


def check_writable(path: Path) -> None:
    """Makes the folder of ``path`` and raises OSError if no file can be written there: call it before long work."""
    try:
        if path.is_dir():
            raise OSError("it is a folder; expected a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error})") from error


def remove_temporaries(folder: str | Path) -> None:
    """Removes the temporary files of killed writers; call it only where no other process writes."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink()


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut; Windows cannot open a folder and has no need for it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCK = ".lock"


@contextmanager
def lock_work_dir(work_dir: Path) -> Iterator[None]:
    """Locks the folder of a run, creates it if missing, and removes the temporary files of a run that was killed there.

    The operating system releases the lock when the process ends, in whatever way; the file only names the process. A
    new folder that stays empty is removed again.

    Raises:
        ValueError: another run has the lock (the message names its process and host), or ``work_dir`` is a file or
            cannot be created.
    """
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f"--work-dir {work_dir} is a file; expected a folder (it is created if missing)")
    made = not work_dir.exists()
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--work-dir {work_dir} cannot be created ({error.strerror}); choose another") from None
    file = _lock(work_dir)
    try:
        if owner := file.read():
            say(f"{work_dir}: the last run in this folder ({owner}) was killed; its lock is free")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        remove_temporaries(work_dir)
        yield
    finally:
        if os.name == "nt":  # cannot remove an open file
            file.close()
        (work_dir / LOCK).unlink()
        file.close()
        if made and not any(work_dir.iterdir()):
            work_dir.rmdir()


def open_locked(path: Path, inherited: bool = False, wait: bool = False) -> TextIO:
    """Opens a text file at its start and locks it against other processes, until it is closed or the process ends.

    The operating system keeps the lock, so a killed process leaves none. On Windows nothing is locked.

    Args:
        inherited: a child process that gets the descriptor has the lock too, until it ends. Otherwise no child has it,
            because a loader's workers may live some seconds longer than a killed run.
        wait: wait for the process that has the lock, instead of raising an error.

    Raises:
        BlockingIOError: another process has the lock; the text of the error is the content of the file.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open as long as the lock
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
    """Opens and locks the lock file of a run's folder."""
    path = work_dir / LOCK
    while True:
        try:
            file = open_locked(path)
        except BlockingIOError as error:
            owner = str(error) or "it has just started"
            raise ValueError(
                f"{work_dir}: another run works in this folder ({owner}); wait for it, or choose another --work-dir"
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # another run removed this file after it was opened here and before it was locked
