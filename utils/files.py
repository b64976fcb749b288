"""Files that are either whole or absent."""

import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes ``content`` beside ``path``, flushes it to disk and renames it: the old file stays whole until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
