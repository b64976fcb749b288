"""Trains the same student alone and with several distillation methods under equal conditions, and compares them.

Every method is trained with every seed, for the same number of steps or seconds; the student alone is always included.
DIR gets table.md, result.json (all figures and their provenance), miou.png, curves_iterations.png, curves_seconds.png,
and in runs/ the work dir of each run. To resume a stopped comparison, run the same command again; methods and seeds may
be added. Teachers are verified once, before the first run.
"""

import argparse
import signal

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from scripts._command import add_config_options, command_parser, one_line_errors
from scripts.comparison.jobs import alone_in
from scripts.comparison.run import PROBE, compare
from utils.files import user_path

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
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("config", nargs="?", help="config file with a teacher, for --methods")
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="FILE",
        help="configs whose distill section replaces CONFIG's; CONFIG's curriculum is not used",
    )  # fmt: skip
    parser.add_argument("--configs", nargs="+", default=[], metavar="FILE", help="complete configs to compare")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2], metavar="S,S", help="default 0,1,2")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget-iters", type=int, metavar="N", help="steps of every run")
    budget.add_argument(
        "--budget-seconds", type=float, metavar="S",
        help=f"training time of every run: S / (time per step) steps, timed on {PROBE['max_iters']} steps",
    )  # fmt: skip
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="parallel runs, each on its own GPU (default 1)"
    )
    add_config_options(parser, "override values of all configs")
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treats a scheduler's stop like Ctrl-C
    with one_line_errors("stopped; run the same command again to resume"), alone_in(args.out) as lock:
        compare(args, lock)


if __name__ == "__main__":
    main()
