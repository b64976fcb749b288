"""Measures speed and memory, and compares with the published recipe, rebuilt from this project's modules.

  loader   training samples per second of one process, from PNG files and from a packed dataset
  step     the distillation step of --config (default: two real pairs), its parts, its overhead over teacher + student
  losses   --steps steps of every method: time / (teacher + student alone), and whether all stays finite, by precision
  metric   the confusion matrix of one image
  eval     whole-image evaluation
  adapters the forward pass of networks of three libraries through our adapter; "published": by the library alone
  scaling  one process against --processes, one thread each: the same batch per process, and one batch divided
  all      everything except scaling

Published means: float32, NCHW, eager; whole images decoded and resized, label ids mapped one by one; teacher logits
upsampled and copied; the attention matrix in memory; class maps from full-size logits; one histogram per class.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

import torch

from engine.report import table
from scripts._command import add_config_options, command_parser, one_line_errors
from scripts._device import DEFAULT, usable_device
from scripts.benchmarks import adapters, evaluation, loader, metric, scaling, step
from utils.console import environment, say
from utils.files import user_path, write_atomically

SECTIONS = ("loader", "step", "losses", "metric", "eval", "adapters")
METHODS = Path("configs/_base_/methods")
QUICK_METHODS = ("kd", "cwd", "hmkd")
EXAMPLES = """examples:
  python scripts/benchmark.py all --quick
  python scripts/benchmark.py step --config configs/hmkd/camvid_b4_r18.py --batch 4 --size 360 480 --json step.json
  python scripts/benchmark.py losses --precisions bf16 fp16 --size 512 512 --steps 20
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("section", choices=[*SECTIONS, "scaling", "all"])
    parser.add_argument("--config", nargs="+", default=list(step.PAIRS), help="pairs for step; others use the last")
    add_config_options(parser, "override values of --config")
    parser.add_argument("--methods", nargs="+", help="method files for losses (default: every one in configs/_base_)")
    parser.add_argument("--precisions", nargs="+", default=["bf16"], choices=["fp32", "bf16", "fp16"], help="of losses")
    parser.add_argument("--device", type=usable_device, default=DEFAULT, help=f"default here: {DEFAULT}")
    parser.add_argument("--batch", type=int, help="images per step (default: 8 on a GPU, 1 on a CPU)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="crop (default: 512 1024)")
    parser.add_argument("--rounds", type=int, help="timed rounds of step and losses (default: 20 on a GPU, 5 on a CPU)")
    parser.add_argument("--processes", type=int, default=2, help="for scaling; must divide --batch")
    parser.add_argument("--steps", type=int, default=0, help="steps of every method, if more than the timing needs")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds and methods, as a test")
    parser.add_argument("--json", type=user_path, help="write all figures here")
    args = parser.parse_args(arguments)
    gpu = args.device.type == "cuda"
    args.batch = args.batch or (8 if gpu and not args.quick else 1)
    args.size = tuple(args.size or ((64, 128) if args.quick else (512, 1024)))
    args.rounds = args.rounds or (2 if args.quick else 20 if gpu else 5)
    names = QUICK_METHODS if args.quick else sorted(path.stem for path in METHODS.glob("*.py"))
    args.methods = args.methods or [str(METHODS / f"{name}.py") for name in names]
    return args


def measure(section: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a section."""
    common = args.device, args.batch, args.size, args.rounds
    if section == "step":
        return [step.step_row(file, args.cfg_options, *common) for file in args.config]
    if section == "losses":
        return step.method_rows(
            args.config[-1], args.cfg_options, args.methods, args.precisions, *common, steps=args.steps
        )
    if section == "adapters":
        return adapters.run(*common)
    if section == "scaling":
        return scaling.run(args.config[-1], args.cfg_options, args.batch, args.size, args.rounds, args.processes)
    return {"loader": loader, "metric": metric, "eval": evaluation}[section].run(args.quick, args.device)


def show(section: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A section's figures as text."""
    if section == "losses":
        return table(
            ["method", "precision", "ms a step", "spread", "/ (teacher + alone)", "peak MiB", "alone", "finite"],
            [
                [Path(row["method"]).stem, row["precision"], *(
                    [f"error: {row['error']}", *[""] * 5] if "error" in row else [
                        f"{row['ms']:.1f}", f"{row['spread']:.0%}", f"{row['overhead']:.3f}",
                        f"{row['memory_mib']:.0f}", f"{row['memory_alone_mib']:.0f}",
                        f"in {row['steps']} steps" if row["finite"] else "NO",
                    ])]
                for row in rows
            ],
        )  # fmt: skip
    if section == "scaling":
        return table(
            ["what", "ms a step", "spread", "images/s", "efficiency", "all-reduce alone / step"],
            [
                [row["what"], f"{1e3 * row['s']:.1f}", f"{row['spread']:.0%}", f"{row['images_per_s']:.2f}",
                 f"{row['efficiency']:.0%}", f"{row['all_reduce']:.1%}"]
                for row in rows
            ],
        )  # fmt: skip
    text = table(
        ["what", "ours (ms)", "published (ms)", "published / ours", "spread", ""],
        [
            [row["what"], f"{1e3 * row['ours']:.2f}", f"{1e3 * row['published']:.2f}", f"{row['ratio']:.2f}",
             f"{row['spread']:.0%}", row.get("note", "")]
            for row in rows
        ],
    )  # fmt: skip
    if section == "step":
        parts = list(rows[0]["parts"])
        text += "\n\n" + table(
            ["where ours goes (ms)", *parts],
            [[row["what"], *(f"{1e3 * row['parts'][part]:.1f}" for part in parts)] for row in rows],
        )
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors():
        found = {}
        for section in SECTIONS if args.section == "all" else (args.section,):
            start = time.perf_counter()
            found[section] = measure(section, args)
            say(f"{section}, in {time.perf_counter() - start:.0f} s:\n\n{show(section, found[section])}\n")
        device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
        say(f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; medians; spread of ours: half")
        say("of the distance between the quartiles, divided by the median")
        if args.json:
            facts = {"environment": environment(), "device": device, "threads": torch.get_num_threads()}
            write_atomically(args.json, (json.dumps({**facts, **found}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
