"""Checks this code on a GPU: whether it works and is correct, how fast it is, and how much memory it needs.

The most important checks run first, each in its own process with a time limit. Each result is printed and written to
--out at once; a failure or a hang stops no other check. A table and a verdict in one line come last.
Exit code 0: nothing failed. With --device cpu the same code runs with small sizes.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from engine.report import table
from scripts._command import command_parser, one_line_errors
from scripts._device import usable_device
from scripts.benchmarks.checks import CHECKS, Setting
from scripts.street.scene import write_synthetic
from utils.console import say
from utils.files import user_path, write_atomically

EXAMPLES = """examples:
  python scripts/check_gpu.py --out gpu.json
  python scripts/check_gpu.py --data data/camvid --checks facts pairs agreement
  python scripts/check_gpu.py --device cpu --minutes 2
"""
MARKS = {True: "ok", False: "FAILED", None: "not run"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--minutes", type=float, default=8, help="for all checks together (default: 8)")
    parser.add_argument("--data", type=user_path, metavar="ROOT", help="CamVid's folder (default: synthetic streets)")
    parser.add_argument("--device", type=usable_device, default="cuda", help="cuda (default), or cpu: small sizes")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="default: all")
    parser.add_argument("--out", type=user_path, metavar="FILE.json", help="write all results here")
    return parser.parse_args(arguments)


def work(check: str, setting: Setting, pipe: Connection) -> None:
    """Measures the cases of a check and sends a row for each."""
    for what, measure in CHECKS[check][0](setting):
        start = time.monotonic()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                row = {"ok": True, **measure()}
        except (Exception, SystemExit) as error:
            first = str(error).strip().partition("\n")[0]
            row = {"ok": False, "result": f"{type(error).__name__}: {first}", "trace": traceback.format_exc()}
        pipe.send({**row, "check": check, "what": what, "took": time.monotonic() - start})


def run_check(context: BaseContext, check: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """The rows of a check as they come; the last one tells if its process was stopped or died."""
    start, row = time.monotonic(), {"check": check, "what": "the rest", "took": 0.0}
    if setting.end <= start:
        yield {**row, "ok": None, "result": "no time was left"}
        return
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(check, setting, sender))
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, setting.end - time.monotonic())):
            yield receiver.recv()
        yield {**row, "ok": False, "result": f"stopped after {time.monotonic() - start:.0f} s"}
    except EOFError:  # the process has ended
        process.join()
        if process.exitcode:
            yield {**row, "ok": False, "result": f"the process died: exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def run_all(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    on_gpu, rows, end = args.device.type == "cuda", [], time.monotonic() + 60 * args.minutes
    if args.data is None:
        write_synthetic(folder / "streets", train=16, val=4, size=(360, 480) if on_gpu else (64, 96))
    # The modules are imported once; a process that is forked afterwards starts CUDA for itself.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["scripts.benchmarks.checks"])
    for check in args.checks:
        limit = min(end, time.monotonic() + CHECKS[check][1]) if on_gpu else end
        for row in run_check(context, check, Setting(args.device, str(args.data or folder / "streets"), folder, limit)):
            rows.append(row)
            say(f"{MARKS[row['ok']]:6} {row['took']:5.1f} s  {check}: {row['what']}: {row['result']}")
            if args.out:
                write_atomically(args.out, (json.dumps(rows, indent=2, default=str) + "\n").encode())
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors(), TemporaryDirectory() as folder:
        rows = run_all(args, Path(folder))
    found = {check: [row["ok"] for row in rows if row["check"] == check] for check in args.checks}
    lines = [[check, *(str(marks.count(mark)) for mark in MARKS)] for check, marks in found.items()]
    say("\n" + table(["check", *MARKS.values()], lines) + "\n")
    of = {mark: ", ".join(check for check, marks in found.items() if mark in marks) for mark in MARKS}
    verdict = f"{args.device} FAILS in {of[False]}" if of[False] else f"{args.device} works"
    say(verdict + (f"; not run: {of[None]}" if of[None] else ""))
    sys.exit(int(bool(of[False])))


if __name__ == "__main__":
    main()
