"""Training state, and the student alone, as files that are either whole or absent."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from utils.files import write_atomically

STEP_FILE = re.compile(r"step_(\d+)\.pt")


def save_checkpoint(state: Mapping[str, Any], *paths: str | Path) -> None:
    """Saves the same training state to each of ``paths``, atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    for path in paths:
        write_atomically(path, buffer.getvalue())


def load_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a training state; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or is not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many types on a damaged file
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
            "it may be truncated: go on from another step_*.pt of its folder"
        ) from error
    wanted = {"student", "method", "optimizer", "scaler", "step", "best", "validated", "micro_batches", "config"}
    lacking = wanted - set(state) if isinstance(state, dict) else wanted
    if lacking:
        raise ValueError(f"{path} is not a training checkpoint: it lacks {', '.join(sorted(lacking))}")
    return state


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """``last.pt``, or else the ``step_*.pt`` of the highest step, or None."""
    work_dir = Path(work_dir)
    if (work_dir / "last.pt").is_file():
        return work_dir / "last.pt"
    steps = step_files(work_dir)
    return steps[-1] if steps else None


def step_files(work_dir: str | Path) -> list[Path]:
    """``step_*.pt`` in the order of their steps."""
    files = [path for path in Path(work_dir).glob("step_*.pt") if STEP_FILE.fullmatch(path.name)]
    return sorted(files, key=lambda path: int(STEP_FILE.fullmatch(path.name)[1]))


def prune_checkpoints(work_dir: str | Path, keep: int) -> None:
    """Removes all ``step_*.pt`` but the newest ``keep``."""
    files = step_files(work_dir)
    for path in files[: max(0, len(files) - keep)]:
        path.unlink()


def save_student(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Weights alone as safetensors, with ``metadata`` (each value as JSON) in its header, atomically."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(content, {name: json.dumps(value) for name, value in metadata.items()}))
