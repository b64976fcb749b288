"""Files of the training state and of the student alone. They are complete or absent, never half written."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from utils.console import say
from utils.files import write_atomically

STEP_FILE = re.compile(r"step_(\d+)\.pt")
# A checkpoint is the zip archive of torch.save. The comment of the archive, which readers ignore, holds the sha256 of
# all bytes before it. An archive without a comment ends with the length of the comment, two zero bytes.
NO_COMMENT = bytes(2)
DIGEST_HEAD = b"sha256:"
COMMENT_BYTES = len(DIGEST_HEAD) + 64


def save_checkpoint(state: Mapping[str, Any], *paths: str | Path) -> None:
    """Saves the same training state to each of ``paths``, atomically, with its sha256."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    signed = content.removesuffix(NO_COMMENT) + _comment(content)
    for path in paths:
        write_atomically(path, signed)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a training state and checks its sha256; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, even by one bit, or is not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    signed = path.read_bytes()
    content = signed[: -len(NO_COMMENT) - COMMENT_BYTES] + NO_COMMENT
    if not signed.endswith(_comment(content)):
        raise ValueError(
            f"{path} ({len(signed)} bytes) is damaged or not one of this code's checkpoints: its end does not hold the "
            "sha256 of the rest; resume from another checkpoint of its folder"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    wanted = {"student", "method", "optimizer", "scaler", "step", "best", "validated", "micro_batches", "config"}
    lacking = wanted - set(state) if isinstance(state, dict) else wanted
    if lacking:
        raise ValueError(f"{path} is not a training checkpoint: it lacks {', '.join(sorted(lacking))}")
    return state


def _comment(content: bytes) -> bytes:
    """The length of the comment, and the comment with the sha256, of an archive that has none yet."""
    digest = DIGEST_HEAD + hashlib.sha256(content).hexdigest().encode()
    return COMMENT_BYTES.to_bytes(2, "little") + digest


def newest_whole_checkpoint(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The undamaged checkpoint of the highest step among ``last.pt`` and ``step_*.pt``, or else ``best.pt``.

    ``last.pt`` is preferred if it has the highest step. It may be older than the newest ``step_N.pt``, which is written
    first, if the run was killed in between. Damaged files are named on the terminal.

    Returns:
        The path and the state, or None if the folder has no checkpoint.

    Raises:
        ValueError: every checkpoint in the folder is damaged.
    """
    work_dir = Path(work_dir)
    newest, damaged = None, []
    for path in (work_dir / "last.pt", *reversed(step_files(work_dir)), work_dir / "best.pt"):
        older = newest is not None and (path.name == "best.pt" or _step_of(path) <= newest[1]["step"])
        if older or not path.is_file():
            continue
        try:
            newest = path, load_checkpoint(path)
        except ValueError as error:
            damaged.append(error)
            say(f"WARNING: {error}")
    if newest is None and damaged:
        raise ValueError(
            f"all {len(damaged)} checkpoints in {work_dir} are damaged (the first: {damaged[0]}); to start a new run, "
            "remove them or choose another --work-dir"
        )
    return newest


def checkpoint_to_resume(work_dir: str | Path, asked: str | None) -> tuple[Path, dict[str, Any]] | None:
    """Path and state of the checkpoint that a run resumes from; None for a new run.

    Args:
        work_dir: folder of the run.
        asked: ``'auto'`` for the newest undamaged one, if there is one; a path; or None for a new run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as ``load_checkpoint``; or the folder holds a run although a new one is asked for, or a run that is
            further than the checkpoint asked for.
    """
    newest = newest_whole_checkpoint(work_dir)
    if asked == "auto":
        return newest
    if asked is None:
        if newest is None:
            return None
        raise ValueError(
            f"{work_dir} already holds a run ({newest[0].name}): add --resume auto to continue it, or choose another "
            "--work-dir"
        )
    state = load_checkpoint(asked)
    if newest is not None and state["step"] < newest[1]["step"]:
        raise ValueError(
            f"{work_dir} holds a run that is at step {newest[1]['step']} already; to resume from {asked} (step "
            f"{state['step']}) choose another --work-dir"
        )
    return Path(asked), state


def step_files(work_dir: str | Path) -> list[Path]:
    """``step_*.pt`` in the order of their steps."""
    files = [path for path in Path(work_dir).glob("step_*.pt") if STEP_FILE.fullmatch(path.name)]
    return sorted(files, key=_step_of)


def _step_of(path: Path) -> int:
    return int(STEP_FILE.fullmatch(path.name)[1])


def prune_checkpoints(work_dir: str | Path, keep: int) -> None:
    """Removes all ``step_*.pt`` except the newest ``keep``."""
    files = step_files(work_dir)
    for path in files[: max(0, len(files) - keep)]:
        path.unlink()


def save_student(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes weights as safetensors, with ``metadata`` (each value as JSON) in the header, atomically."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(content, {name: json.dumps(value) for name, value in metadata.items()}))
