"""The checks of ``scripts/check_gpu.py``; each gives its cases one by one.

A case is a name and a function that measures it and returns a row: ``result`` in words, ``ok`` (True unless given) and
figures. Importing this module must not ask PyTorch for devices: the checks' processes are forked from one that did it.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.checkpoint import save_student
from engine.metrics import ConfusionMatrix
from models import build_model
from scripts import export
from scripts.benchmarks import evaluation, loader, metric, step
from scripts.benchmarks.timing import peak_memory, time_each
from utils.console import environment
from utils.distributed import World, make_deterministic

SMALL = tuple(f"configs/camvid_cpu/{pair}.py" for pair in ("b0_r18", "r18_b0"))
PAIRS = tuple(f"configs/hmkd/cityscapes_{pair}.py" for pair in ("b4_r18", "r101_b0", "r101_r18", "b4_b0"))
METHODS = Path("configs/_base_/methods")
STEPS = 8  # of a whole run
TOLERANCE = 1e-4  # relative, of losses in float32 on two devices
KEPT_TOLERANCE = 1e-2  # of losses from teacher outputs that were kept in float16

Row = dict[str, Any]
Cases = Iterator[tuple[str, Callable[..., Row]]]


class Setting(NamedTuple):
    """What the checks share. On a CPU all is small."""

    device: torch.device
    data: str  # folder in CamVid's layout
    folder: Path  # for files; later checks read what earlier ones leave
    end: float  # when the check is stopped, by ``time.monotonic``

    @property
    def tiny(self) -> bool:
        return self.device.type == "cpu"

    @property
    def pairs(self) -> tuple[str, ...]:
        return SMALL[1:] if self.tiny else PAIRS

    @property
    def common(self) -> tuple[torch.device, int, tuple[int, int], int]:
        """Device, batch, size and rounds of the benchmarks."""
        return (self.device, 1, (64, 64), 1) if self.tiny else (self.device, 8, (512, 1024), 10)

    def step(self, file: str, *options: str, batch: int = 0) -> tuple[Any, dict, Callable[[], tuple[dict, dict]]]:
        """The trainer of a config with random networks, a batch of noise, and the step on it."""
        data = step.random_batch(batch or self.common[1], self.common[2], pinned=not self.tiny)
        trainer = step.build(step.load_pair(file, *options), World(0, 1, self.device))
        return trainer, data, partial(trainer.train_step, [data])

    def time(self, **calls: Callable[[], object]) -> dict[str, float]:
        """Median seconds of each."""
        return {name: each.median for name, each in time_each(calls, self.device, self.common[-1]).items()}


def facts(s: Setting) -> Cases:
    def read() -> Row:
        found: Row = dict(environment())
        if not s.tiny:
            card = torch.cuda.get_device_properties(s.device)
            found |= {"GiB": round(card.total_memory / 2**30, 1), "capability": (card.major, card.minor)}
            found |= {"cudnn": torch.backends.cudnn.version(), "nccl": torch.cuda.nccl.version()}
        found["TFLOP/s in bf16"] = round(step.matmul_rate(s.device) / 1e12, 1)
        return found | {"result": ", ".join(f"{name} {value}" for name, value in found.items())}

    yield "device and libraries", read


def method_row(s: Setting, file: str, method: Path, precision: str, steps: int, size: tuple[int, int]) -> Row:
    device, batch, _, rounds = s.common
    (row,) = step.method_rows(file, [], [str(method)], [precision], device, batch, size, rounds, steps)
    if "error" in row:
        raise ValueError(row["error"])
    text = f"{row['ms']:.1f} ms, {row['overhead']:.2f} of teacher + alone, peak {row['memory_mib']:.0f} MiB"
    return row | {"ok": row["finite"], "result": text + ("" if row["finite"] else ", NOT FINITE")}


def pairs(s: Setting) -> Cases:
    for file in s.pairs:
        for precision in ("bf16",) if s.tiny else ("bf16", "fp16"):
            measure = partial(method_row, s, file, METHODS / "hmkd.py", precision, 10, s.common[2])
            yield f"{Path(file).stem}, {precision}, 10 steps", measure


def agreement(s: Setting) -> Cases:
    def compare(file: str) -> Row:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        config = step.load_pair(file, "train.precision=fp32", "student.dropout=0", "student.drop_path=0")
        trainers = [step.build(config, World(0, 1, device)) for device in (torch.device("cpu"), s.device)]
        trainers[1].distiller.load_state_dict(trainers[0].distiller.state_dict())  # what was measured on the teacher
        data = step.random_batch(2, (64, 128), pinned=False)
        found = [[trainer.train_step([data])[0] for _ in range(5)] for trainer in trainers]
        worst = max(abs(b[k] - a[k]) / abs(a[k]) for a, b in zip(*found, strict=True) for k in a)
        return {"ok": worst < TOLERANCE, "result": f"differ by {worst:.1e} at most, relative", "losses": found}

    for file in SMALL:
        yield f"{Path(file).stem}, CPU against {s.device.type}, 5 steps in float32", partial(compare, file)


def deterministic(s: Setting) -> Cases:
    def twice(file: str) -> Row:
        make_deterministic()
        found = []
        for _ in range(2):
            trainer, _, run = s.step(file)
            found.append(([run()[0] for _ in range(3)], [each.clone() for each in trainer.distiller.parameters()]))
        (one, weights), (other, others) = found
        same, cost = one == other and all(map(torch.equal, weights, others)), s.time(run=run)["run"]
        torch.use_deterministic_algorithms(False)
        cost /= s.time(run=run)["run"]
        return {"ok": same, "result": f"{'the same' if same else 'OTHER'} bits, {cost:.2f} of the time without"}

    for file in s.pairs[:2]:
        yield f"{Path(file).stem}, train.deterministic twice", partial(twice, file)


def runs(s: Setting) -> Cases:
    """Whole runs of ``train_kd.py``, of R18 -> B0 with a teacher of random weights."""
    options = {
        "data.root": s.data, "data.crop_size": (64, 96) if s.tiny else (360, 480), "data.workers": 0 if s.tiny else 4,
        "data.distinct_epochs": 1, "teacher.weights": s.folder / "teacher.safetensors", "schedule.max_iters": STEPS,
        "schedule.warmup_iters": 0, "train.deterministic": True, "train.verify_teacher": False, "train.batch_size": 4,
        "eval.interval": STEPS, "checkpoint.interval": 1, "log.interval": 1, "log.grad_norm_interval": 0,
    }  # fmt: skip
    kept = {"teacher.cache": s.folder / "cache", "teacher.cache_taps": ("stage1", "stage2", "stage3", "stage4", "head")}
    known: list[float] = []  # losses of the first run

    def train(name: str, *flags: str, launcher: str = "", kill_at: int = 0, **more: Any) -> Row:
        given = [f"{key}={value}" for key, value in {**options, **more}.items()]
        command = [sys.executable, *launcher.split(), "train_kd.py", SMALL[1], "--work-dir", str(s.folder / name)]
        log, output = s.folder / name / "metrics.jsonl", s.folder / f"{name}.log"
        visible = {"CUDA_VISIBLE_DEVICES": ""} if s.tiny else {}
        with output.open("a") as file:
            process = subprocess.Popen(
                [*command, *flags, "--cfg-options", *given], stdout=file, stderr=file, env=os.environ | visible
            )
        while process.poll() is None:
            time.sleep(0.02)
            if kill_at and log.is_file() and log.read_text().count('"loss"') >= kill_at:
                process.kill()
            if time.monotonic() > s.end - 3:
                process.terminate()
        if (process.returncode == 0) == bool(kill_at):
            raise ValueError(f"exit code {process.returncode}: {output.read_text().strip().splitlines()[-1:]}")
        losses = [line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
        known.extend(losses[len(known) :])
        worst = max(abs(a - b) / abs(a) for a, b in zip(known, losses, strict=not kill_at))
        result = f"loss {losses[0]:.3f} to {losses[-1]:.3f}; {worst:.1e} from the first run's at most, relative"
        return {"ok": worst <= (KEPT_TOLERANCE if more else 0), "result": result, "losses": losses}

    def first() -> Row:
        torch.manual_seed(0)
        teacher = build_model("resnet18", "deeplabv3", 11, output_stride=8, width=128)
        save_student(options["teacher.weights"], teacher.state_dict(), {})
        return train("first")

    def resumed() -> Row:
        train("killed", kill_at=3)
        return train("killed", "--resume", "auto")

    launcher = "-m torch.distributed.run --standalone --nproc_per_node=1"
    yield f"train_kd.py, {STEPS} steps", first
    yield "the same, killed after 3 steps and resumed", resumed
    yield f"the same, one rank of {'gloo' if s.tiny else 'NCCL'}", partial(train, "launched", launcher=launcher)
    yield "the same with teacher.cache", partial(train, "kept", **kept)


def compared(measure: Callable[..., Row], *arguments: Any) -> Row:
    """A row of a benchmark, the published way beside ours."""
    row = measure(*arguments)
    parts = "".join(f", {name} {1e3 * part:.1f} ms" for name, part in row.get("parts", {}).items())
    return row | {"result": f"{1e3 * row['ours']:.2f} ms, published {row['ratio']:.2f}x; {row['note']}{parts}"}


def steps(s: Setting) -> Cases:
    for file in s.pairs[:2]:
        yield f"{Path(file).stem} against the published step", partial(compared, step.step_row, file, [], *s.common)


def methods(s: Setting) -> Cases:
    size = s.common[2] if s.tiny else (512, 512)
    for file in sorted(METHODS.glob("*.py"))[:: 20 if s.tiny else 1]:
        yield f"{file.stem} on r18_b0", partial(method_row, s, SMALL[1], file, "bf16", 1, size)


def host_waits(call: Callable[[], object], device: torch.device) -> list[str]:
    """The lines at which the host waits for the GPU, as CUDA's debug mode finds them; none on a CPU."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        call()
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    lines = {f"{Path(each.filename).name}:{each.lineno}" for each in found if "synchronizing" in str(each.message)}
    return sorted(lines)


def evaluations(s: Setting) -> Cases:
    def waits() -> Row:
        maps, counts = [pixels.to(s.device) for pixels in metric.random_maps()], ConfusionMatrix(19, s.device)
        found = host_waits(lambda: counts.update(*maps), s.device)
        return {"ok": not found, "result": f"the host waits at {found or 'no line'}"}

    yield "confusion matrix", lambda: compared(lambda: metric.run(s.tiny, s.device)[0])
    yield "confusion matrix, without waiting for the GPU", waits
    for network in evaluation.NETWORKS:
        yield f"whole images, {network[0]}", partial(compared, evaluation.network_row, *network, s.tiny, s.device)


def loading(s: Setting) -> Cases:
    def measure() -> Row:
        rows = loader.run(s.tiny, s.device)
        return {"result": ", ".join(f"{row['what']} {1e3 * row['ours']:.1f} ms" for row in rows), "rows": rows}

    yield "a sample in one process", measure


def timed(s: Setting, file: str, *options: str, batch: int = 0, search: bool = False) -> Row:
    """Time and memory of a step with these options, or with cuDNN's search for the fastest algorithms."""
    torch.backends.cudnn.benchmark = search
    run = s.step(file, *options, batch=batch)[-1]
    seconds, peak = s.time(run=run)["run"], peak_memory(run, s.device) / 2**20
    rate = (batch or s.common[1]) / seconds
    result = f"{1e3 * seconds:.1f} ms, {rate:.1f} images/s, peak {peak:.0f} MiB"
    return {"result": result, "seconds": seconds, "peak_mib": peak}


def variants(s: Setting) -> Cases:
    # On a CPU compiling takes a minute; tests/engine/test_blocks.py shows there that it changes nothing.
    compiled = [] if s.tiny else ["train.compile=True"]
    for option in ("default", "cudnn.benchmark", "train.channels_last=False", *compiled):
        for file in s.pairs[:2]:
            given = [option] if "=" in option else []
            yield f"{Path(file).stem}, {option}", partial(timed, s, file, *given, search=option == "cudnn.benchmark")


def beside(first: Callable[[], Any], second: Callable[[], Any], device: torch.device) -> Any:
    """Runs ``second`` on a side stream beside ``first``, and returns its result; on a CPU one after the other."""
    if device.type != "cuda":
        return first(), second()
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        result = second()
    done = first(), result
    main.wait_stream(side)
    return done


def graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """``call`` as a CUDA graph that is replayed into the same outputs; on a CPU ``call`` itself."""
    if device.type != "cuda":
        return call
    beside(lambda: None, call, device)  # before it is captured it must have run on a side stream
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return lambda: (graph.replay(), result)[1]


def gains(s: Setting) -> Cases:
    def measure(file: str) -> Row:
        trainer, data, run = s.step(file)
        images, labels, _ = trainer.inputs(data)

        def teacher() -> Any:
            with trainer.autocast():
                return trainer.teacher(images)

        def student() -> None:
            terms = trainer.forward(images, labels)
            sum(trainer.weights[name] * term for name, term in terms.items()).backward()
            trainer.optimizer.zero_grad(set_to_none=True)

        expected, graph, both = teacher().logits.clone(), graphed(teacher, s.device), partial(beside, student, teacher)
        same = all(torch.allclose(each.logits, expected, 1e-2, 1e-2) for each in (graph(), both(s.device)[1]))
        t = s.time(step=run, copy=partial(trainer.inputs, data), teacher=teacher, graph=graph, student=student,
                   both=partial(both, s.device))  # fmt: skip
        saved = {"teacher beside the student": t["teacher"] + t["student"] - t["both"],
                 "teacher as a CUDA graph": t["teacher"] - t["graph"], "copies beside the step": t["copy"]}  # fmt: skip
        text = ", ".join(f"{name} {seconds / t['step']:+.1%}" for name, seconds in saved.items())
        text += f" of {1e3 * t['step']:.1f} ms; the host waits at {host_waits(run, s.device) or 'no line'}"
        return {"ok": same, "result": text if same else f"OTHER OUTPUTS; {text}", "seconds": t}

    for file in s.pairs[:2]:
        yield f"{Path(file).stem}, what could be saved", partial(measure, file)


def onnx(s: Setting) -> Cases:
    def compare() -> Row:
        student = str(s.folder / "first" / "student.safetensors")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            export.main([SMALL[1], student, "--cfg-options", f"data.root={s.data}"])
        return {"result": next(line for line in printed.getvalue().splitlines() if "agree on" in line)}

    yield "ONNX Runtime on the CPU against PyTorch", compare


def largest(s: Setting) -> Cases:
    def double(file: str) -> Row:
        row, batch = {"result": "none fits"}, s.common[1]
        with contextlib.suppress(torch.OutOfMemoryError):
            while batch <= (2 if s.tiny else 1024) and time.monotonic() < s.end - 20:
                row, batch = timed(s, file, batch=batch) | {"batch": batch}, 2 * batch
                step.free()
        return row | {"result": f"batch {row.get('batch')}: {row['result']}"}

    for file in s.pairs[:2]:
        yield f"{Path(file).stem}, largest batch of 8, 16, ... that fits", partial(double, file)


# In order of worth: the cases, and the seconds after which a check is stopped.
CHECKS: dict[str, tuple[Callable[[Setting], Cases], float]] = {
    "facts": (facts, 30), "pairs": (pairs, 120), "agreement": (agreement, 60), "deterministic": (deterministic, 60),
    "runs": (runs, 150), "step": (steps, 90), "methods": (methods, 90), "evaluation": (evaluations, 60),
    "loader": (loading, 60), "gains": (gains, 40), "variants": (variants, 150), "onnx": (onnx, 60),
    "largest": (largest, 80),
}  # fmt: skip
