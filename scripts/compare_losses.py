"""Trains with two revisions of this code and checks that losses, metrics and weights are equal bit for bit.

Use it to show that a refactoring changed no number. Both revisions train on the CPU in float32, one after the other,
and log every step. Exit code 0: all is equal; 1: something differs, or a revision cannot train.
"""

import argparse
import io
import json
import operator
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples, from the repository root:
  python scripts/compare_losses.py HEAD . configs/demo/hmkd.py
  python scripts/compare_losses.py v0.1 main configs/demo/hmkd.py --steps 50 --cfg-options train.accumulate=2
"""
Figures = dict[tuple[int, str], float | None]  # by step and name, as the run logged them


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "compare_losses.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("revision_a", "revision_b"):
        parser.add_argument(name, help="commit, branch or tag; '.' is the working tree as it is")
    parser.add_argument("config", help="path inside each revision, or an absolute path to one file for both")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="training steps (default 20)")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="a.b=c",
        help="override config values in both; paths of data and weights are relative to the current folder",
    )  # fmt: skip
    return parser.parse_args(arguments)


def check_out(revision: str, folder: Path) -> Path:
    """The root of the code of ``revision``: ``folder``, filled from git, or the working tree itself."""
    if revision == ".":
        return ROOT
    done = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise ValueError(f"revision {revision!r} cannot be read from {ROOT}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def train(code: Path, work_dir: Path, config: str, steps: int, options: list[str]) -> None:
    """Runs ``train_kd.py`` of the code in ``code``; relative paths start at the current folder."""
    options = [
        f"schedule.max_iters={steps}", "schedule.warmup_iters=0", "train.precision=fp32", "log.interval=1",
        "log.panel_images=0", *options,
    ]  # fmt: skip
    command = [sys.executable, code / "train_kd.py", code / config, "--work-dir", work_dir, "--cfg-options", *options]
    # No GPU, and no module of another checkout.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([*map(str, command)], env=settings, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command))} failed:\n{done.stderr.strip()}")


def read_figures(work_dir: Path) -> Figures:
    """Every figure in the log of a run; those of a section are named ``section.name``."""
    figures: Figures = {}
    for line in map(json.loads, (work_dir / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        for name, value in line.items():
            section = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else None
            figures |= {(step, key): entry for key, entry in (section or {name: value}).items()}
    return figures


def read_weights(work_dir: Path) -> dict[str, torch.Tensor]:
    """The last weights of the student and of the method's own modules."""
    state = torch.load(work_dir / "last.pt", weights_only=True)
    return {f"{part}.{name}": tensor for part in ("student", "method") for name, tensor in state[part].items()}


def differences(a: Mapping[Any, Any], b: Mapping[Any, Any], equal: Callable[[Any, Any], bool]) -> list[Any]:
    """The keys whose values differ, or that one side lacks."""
    return [key for key in {**a, **b} if not (key in a and key in b and equal(a[key], b[key]))]


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures, weights = [], []
        try:
            for side, revision in (("a", args.revision_a), ("b", args.revision_b)):
                code, work_dir = check_out(revision, Path(folder, side, "code")), Path(folder, side, "run")
                print(f"training {revision} for {args.steps} steps", flush=True)
                train(code, work_dir, args.config, args.steps, args.cfg_options)
                figures.append(read_figures(work_dir))
                weights.append(read_weights(work_dir))
        except ValueError as error:
            sys.exit(f"error: {error}")
    total, names = len(figures[0]), list(dict.fromkeys(name for _, name in figures[0]))
    if different := sorted(differences(*figures, operator.eq)):
        step, name = different[0]
        a, b = (each.get(different[0], "absent") for each in figures)
        print(f"{len(different)} of {total} figures differ: {', '.join(dict.fromkeys(name for _, name in different))}")
        print(f"first difference: step {step}, {name}: {args.revision_a} {a!r}, {args.revision_b} {b!r}")
    if unlike := differences(*weights, torch.equal):
        print(f"{len(unlike)} of {len(weights[0])} weights differ after the last step; the first: {unlike[0]}")
    if not different and not unlike:
        print(f"equal: all {total} figures ({', '.join(names)}), and all {len(weights[0])} weights after the last step")
    return int(bool(different or unlike))


if __name__ == "__main__":
    sys.exit(main())
