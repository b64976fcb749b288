"""Files that are either whole or absent."""

import errno
import os
import shutil
from pathlib import Path

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
