"""Files that are either whole or absent."""

import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes ``content`` beside ``path``, flushes it to disk and renames it: the old file stays whole until then.

    Raises:
        OSError: naming ``path``, if it cannot be written.
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
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}); what was there is as it was") from error
    finally:
        if temporary.is_file():
            temporary.unlink()
