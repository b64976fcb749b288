"""Trains the same student alone and by several distillation methods, on equal terms, and says what each is worth.

Every method is trained with every seed, for as many iterations or for as many seconds; the student alone always runs.
DIR gets table.md, result.json (every figure and its provenance), miou.png, curves_iterations.png, curves_seconds.png,
and in runs/ the work dir of each run. A comparison that was stopped goes on when the same command is run again;
methods and seeds may be added to it. Teachers are verified before the first run, and not again by each.
"""

import argparse
import signal
import sys
from pathlib import Path

if not __package__:  # run as a file: its own folder is on the import path, the repository's root is not
    from _as_module import restart_as_module

    restart_as_module(__file__)

from scripts.comparison.jobs import alone_in
from scripts.comparison.run import PROBE, compare

EXAMPLES = """examples:
  python scripts/compare.py --configs configs/demo/hmkd.py --seeds 0,1,2 --budget-iters 400 --out work_dirs/compare
  python scripts/compare.py configs/demo/hmkd.py --methods configs/_base_/methods/{kd,cwd,hmkd}.py \\
      --seeds 0,1,2 --budget-seconds 60 --out work_dirs/compare_seconds --jobs 2
"""


def seeds(text: str) -> list[int]:
    """``'0,1,2'`` -> [0, 1, 2]"""
    found = [int(part) for part in text.split(",")]
    if min(found) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: expected whole numbers from 0 on, each once, as in 0,1,2")
    return found


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "compare.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="config file with a teacher, for --methods")
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="FILE",
        help="configs whose distill takes the place of CONFIG's; its curriculum is left out",
    )  # fmt: skip
    parser.add_argument("--configs", nargs="+", default=[], metavar="FILE", help="whole experiments to compare")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2], metavar="S,S", help="default 0,1,2")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget-iters", type=int, metavar="N", help="steps of every run")
    budget.add_argument(
        "--budget-seconds", type=float, metavar="S",
        help=f"training time of every run: its steps are S / the time of a step, from {PROBE['max_iters']} steps first",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, a GPU each (default 1)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override values of all configs")
    args = parser.parse_args(arguments)
    if bool(args.config) != bool(args.methods) or not (args.config or args.configs):
        parser.error("give CONFIG with --methods, or --configs, or both")
    for name in ("budget_iters", "budget_seconds", "jobs"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} {value}: expected a positive number")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    try:
        with alone_in(args.out) as lock:
            compare(args, lock)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
