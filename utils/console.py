"""Output to the terminal and to a run's log file, and the versions and device that a result depends on."""

import logging
import math
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import RotatingFileHandler
from pathlib import Path

import torch
from tqdm import tqdm

PACKAGES = ("torch", "torchvision", "timm", "mmengine-lite", "pydantic", "opencv-python-headless", "numpy")
RECORD_FILE, RECORD_BYTES, OLD_RECORDS = "train.log", 10 * 2**20, 3

RECORD = logging.getLogger("hmkd")  # all that ``say`` prints; ``log_to_file`` writes it to a file
RECORD.setLevel(logging.INFO)
RECORD.propagate = False
RECORD.addHandler(logging.NullHandler())


def peak_memory_mib() -> float:
    """Peak memory in MiB: of the tensors on the GPU with CUDA, else of the process (nan on Windows)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def say(message: str) -> None:
    """Prints a line without breaking a progress bar; a run also writes it to its log (``log_to_file``)."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()
    RECORD.info(message)


@contextmanager
def log_to_file(work_dir: Path) -> Iterator[None]:
    """Writes all that ``say`` prints, and the error that ends the block, to ``train.log`` with the time.

    A full log file is renamed to ``train.log.1`` and so on; the three newest are kept.
    """
    path = work_dir / RECORD_FILE
    handler = RotatingFileHandler(path, maxBytes=RECORD_BYTES, backupCount=OLD_RECORDS, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.handleError = lambda record: None  # on a full disk the terminal still has the line
    RECORD.addHandler(handler)
    try:
        yield
    except BaseException as error:
        if path.is_file():  # a run that never started leaves no file
            RECORD.info(f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        RECORD.removeHandler(handler)
        handler.close()


def error_message(error: Exception) -> str:
    """The message of an error; of an error in a loader's worker, without the worker's traceback before it."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return re.split(r"^[\w.]*Error: ", text, flags=re.MULTILINE)[-1].strip()


def environment() -> dict[str, str]:
    """Versions, device and commit, on which a result depends besides its config."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    facts["cuda"] = torch.version.cuda or "none"
    facts["commit"] = _git("rev-parse", "HEAD") or "unknown"
    if _git("status", "--porcelain"):
        facts["commit"] += " with uncommitted changes"
    return facts


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
