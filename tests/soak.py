"""Injects faults into small runs, at random, for as long as it is told, and compares each with a run without a fault.

Every cycle is a run that is hurt some times and then finished by ``train_kd.py CONFIG --resume auto``. Its log and its
weights must equal, bit for bit, those of the same run left alone (on one process, or on two under torchrun). The last
line says how many faults there were and what was lost; the exit code is 1 if anything was.

OMP_NUM_THREADS=1 python -m tests.soak [SECONDS] [--seed N] [--ranks SHARE]
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

import train_kd
from engine import run
from engine.checkpoint import load_checkpoint, save_student, step_files
from models import build_model
from scripts.street.scene import write_synthetic

ROOT = Path(__file__).resolve().parents[1]
# All that a run has to go on from: dropout, drop path, augmentation, a method's own modules, two validations.
CONFIG = """
data = dict(type="camvid", root={root!r}, crop_size=(32, 48), scale_range=(0.8, 1.2), photometric=True, workers=0)
student = dict(backbone="test_resnet", head="deeplabv3", output_stride=16, width=8, drop_path=0.2)
teacher = dict(backbone="test_resnet", head="deeplabv3", output_stride=16, width=8, weights={weights!r})
distill = dict(type="hmkd", relation=1.0)
optimizer = dict(type="adamw", lr=1e-3)
schedule = dict(max_iters=8, warmup_iters=1)
train = dict(batch_size=4, precision="fp32", verify_teacher=False)
eval = dict(interval=4)
checkpoint = dict(interval=1, keep=3)
log = dict(interval=1, panel_images=0)
"""
VALIDATION_IMAGES = 4
PATIENCE = 300  # seconds after which a run is held to hang
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGINT": signal.SIGINT, "killed": signal.SIGKILL}
DAMAGES = ("cut off", "bit flipped", "emptied", "not renamed")
# A run starts as a copy of a process that has imported all and done nothing: it has no threads that a copy would lack.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["train_kd"])


class LostRunError(Exception):
    """A run did not come to its end, or to another."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_writing(draw: random.Random) -> None:
    """Ends this process at one of its next flushes: a file is then cut off, or renamed and the rest not done."""
    flush, left = os.fsync, draw.randint(1, 30)

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            if not os.path.isdir(f"/proc/self/fd/{descriptor}") and draw.random() < 0.7:
                os.ftruncate(descriptor, draw.randrange(os.fstat(descriptor).st_size + 1))
            die()
        flush(descriptor)

    os.fsync = fsync


def die_validating(draw: random.Random) -> None:
    """Ends this process at one of the next images that are validated."""
    evaluate, left = run.evaluate, draw.randint(1, 2 * VALIDATION_IMAGES)

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            die()

    run.evaluate = lambda *arguments, **options: evaluate(*arguments, **options, on_sample=count)


ARMED = {"killed writing": die_writing, "killed validating": die_validating}


def train(arguments: list[str], output: Path, prepare: Callable[[random.Random], None] | None, seed: float) -> None:
    """What a run's process does; what it says is added to a file."""
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore too, which a killed process would leave behind
    if prepare is not None:
        prepare(random.Random(seed))
    train_kd.main(arguments)


class Soak:
    """The runs, their references and what was found.

    Args:
        folder: for all that is written.
        draw: of faults and moments.
    """

    def __init__(self, folder: Path, draw: random.Random):
        self.folder, self.draw = folder, draw
        self.faults, self.lost, self.bytes_lost = Counter(), 0, 0
        write_synthetic(folder / "streets", train=8, val=VALIDATION_IMAGES, size=(48, 64))
        torch.manual_seed(0)
        teacher, weights = build_model("test_resnet", "deeplabv3", 11, output_stride=16, width=8), folder / "teacher"
        save_student(weights.with_suffix(".safetensors"), teacher.state_dict(), {})
        self.config = folder / "soak.py"
        self.config.write_text(
            CONFIG.format(root=str(folder / "streets"), weights=str(weights.with_suffix(".safetensors")))
        )
        self.references: dict[int, Path] = {}
        self.seconds: dict[int, float] = {}  # of an uninterrupted run
        self.work_dir = folder

    def start(self, prepare: Callable[[random.Random], None] | None = None) -> BaseProcess:
        """The run, in a process of its own; ``prepare`` arms it."""
        arguments = [str(self.config), "--work-dir", str(self.work_dir), "--resume", "auto"]
        process = processes.Process(
            target=train, args=(arguments, self.folder / "output.txt", prepare, self.draw.random())
        )
        process.start()
        return process

    def launch(self) -> subprocess.Popen:
        """The run on two processes under torchrun, which starts both anew where one is lost."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["--max-restarts=2", str(ROOT / "train_kd.py"), str(self.config)]
        command += ["--work-dir", str(self.work_dir), "--resume", "auto"]
        with open(self.folder / "output.txt", "ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)

    def finish(self, ranks: int) -> None:
        """Runs to the end.

        Raises:
            LostRunError: it does not come to it.
        """
        if ranks == 1:
            process = self.start()
            process.join(PATIENCE)
            code = process.exitcode
            if code is None:
                process.kill()
        else:
            code = ended(self.launch())
        if code != 0:
            raise LostRunError("it does not end" if code is None else f"it ends with exit code {code} instead of 0")

    def refer(self, ranks: int) -> Path:
        """The folder of the run without a fault."""
        if ranks not in self.references:
            self.work_dir, began = self.folder / f"reference_{ranks}", time.monotonic()
            try:
                self.finish(ranks)
            except LostRunError as error:
                output = (self.folder / "output.txt").read_text(errors="replace")
                sys.exit(f"{output}\nerror: without any fault too, {self.work_dir}: {error}")
            self.references[ranks], self.seconds[ranks] = self.work_dir, time.monotonic() - began
        return self.references[ranks]

    def moment(self, ranks: int = 1) -> float:
        """Seconds after the start of a run."""
        return self.draw.uniform(0.02, 1.0) * self.seconds[ranks]

    def hurt(self) -> None:
        """One start of the run, which meets a fault, if it does not end before.

        Raises:
            LostRunError: it ends in another way than by the fault.
        """
        fault = self.draw.choice([*ARMED, *SIGNALS, *DAMAGES])
        process, number = self.start(ARMED.get(fault)), SIGNALS.get(fault, signal.SIGKILL)
        if fault not in ARMED:
            process.join(self.moment())
            if process.is_alive():
                os.kill(process.pid, number)
        process.join(PATIENCE)
        # A run that is not yet built is ended by its signal, or, interrupted, with 1; later it saves before it stops.
        allowed = {0, -number} | ({128 + number} if number != signal.SIGKILL else set())
        if process.exitcode not in allowed | ({1} if number == signal.SIGINT else set()):
            process.kill()
            raise LostRunError(f"{fault}: ended with exit code {process.exitcode}")
        if process.exitcode and (fault not in DAMAGES or self.damage(fault)):
            self.faults[fault] += 1

    def damage(self, kind: str) -> bool:
        """Hurts the newest checkpoint, or the newest two, but leaves a whole one; whether there were enough."""
        steps = step_files(self.work_dir)
        newest = [self.work_dir / "last.pt", *reversed(steps)][: self.draw.randint(1, 2)]
        if len(steps) < 2 or not all(path.is_file() for path in newest):
            return False
        for path in newest:
            content = bytearray(path.read_bytes())
            if kind == "not renamed":  # the power failed before
                path.rename(path.with_name(f".{path.name}.{self.draw.randrange(10**6)}.tmp"))
                continue
            if kind == "cut off":
                del content[self.draw.randrange(len(content)) :]
            elif kind == "bit flipped":
                content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
            else:
                content.clear()
            path.write_bytes(content)
        return True

    def hurt_ranks(self) -> None:
        """One rank of two dies, or torchrun is told to stop, if the run does not end before.

        Raises:
            LostRunError: torchrun does not end.
        """
        process = self.launch()
        time.sleep(self.moment(ranks=2))
        ranks = children(process.pid)
        if ranks and self.draw.random() < 0.75:
            with suppress(ProcessLookupError):  # it has just come to its end
                os.kill(self.draw.choice(ranks), signal.SIGKILL)
                self.faults["rank killed"] += 1
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM)
            self.faults["torchrun stopped"] += 1
        if ended(process) is None:
            raise LostRunError("torchrun does not end after a rank was lost")

    def cycle(self, number: int, ranks: int) -> None:
        """A run that is hurt some times, finished, and compared.

        Raises:
            LostRunError: it is not what it would have been.
        """
        reference = self.refer(ranks)
        self.work_dir = self.folder / f"cycle_{number}"
        if ranks > 1:
            self.hurt_ranks()
        for _ in range(self.draw.randint(1, 4) if ranks == 1 else 0):
            self.hurt()
        self.finish(ranks)
        found = differing_bytes(self.work_dir, reference)
        self.bytes_lost += found
        if found:
            raise LostRunError(f"{found} bytes of its log and weights differ from those of {reference}")
        shutil.rmtree(self.work_dir)

    def verdict(self, cycles: int, seconds: float) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"soak of {seconds:.0f} s: {cycles} runs, {self.faults.total()} faults ({kinds or 'none'}); "
            f"{cycles - self.lost} runs survived, {self.lost} lost, {self.bytes_lost} bytes lost"
        )


def children(pid: int) -> list[int]:
    """Processes that this one started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def ended(process: subprocess.Popen) -> int | None:
    """The exit code; None for a process that had to be killed, with those that it started."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in [*children(process.pid), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        return None


def differing_bytes(one: Path, two: Path) -> int:
    """Bytes of the log and of the last and best weights, the method's too, that are not the same."""
    logs = [(folder / "metrics.jsonl").read_bytes() for folder in (one, two)]
    count = abs(len(logs[0]) - len(logs[1])) + sum(a != b for a, b in zip(*logs, strict=False))
    for name in ("last.pt", "best.pt"):
        states = [load_checkpoint(folder / name) for folder in (one, two)]
        for part in ("student", "method"):
            tensors = [state[part] for state in states]
            for key in tensors[0].keys() | tensors[1].keys():
                pair = [some[key].reshape(-1).view(torch.uint8) for some in tensors if key in some]
                count += pair[0].numel() if len(pair) == 1 else int((pair[0] != pair[1]).sum())
    return count


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every run survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=1800, help="how long (default: half an hour)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of faults and moments (default: the time)")
    parser.add_argument("--ranks", type=float, default=0.1, metavar="SHARE", help="of runs on two processes (0.1)")
    args = parser.parse_args(arguments)
    if args.seconds <= 0 or not 0 <= args.ranks <= 1:
        parser.error(f"SECONDS {args.seconds:g}, --ranks {args.ranks:g}: expected more than 0, and a share in 0..1")
    folder, draw = Path(tempfile.mkdtemp(prefix="soak_")), random.Random(args.seed)
    print(f"seed {args.seed}, in {folder}", flush=True)
    soak, began, cycles = Soak(folder, draw), time.monotonic(), 0
    while not cycles or time.monotonic() - began < args.seconds:
        cycles += 1
        try:
            soak.cycle(cycles, ranks=2 if draw.random() < args.ranks else 1)
        except LostRunError as loss:
            soak.lost += 1
            print(f"LOST {soak.work_dir}: {loss}; what was said is in {folder / 'output.txt'}", flush=True)
    print(soak.verdict(cycles, time.monotonic() - began))
    if not soak.lost:
        shutil.rmtree(folder)
    return 1 if soak.lost else 0


if __name__ == "__main__":
    sys.exit(main())
