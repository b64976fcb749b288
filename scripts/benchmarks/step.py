"""The distillation step: against the published recipe, against its own parts, and of every method."""

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from configs.schema import Experiment, Schedule
from engine.build import build_distiller, build_student
from engine.run import build_trainer
from engine.teacher import build_teacher
from engine.trainer import Trainer
from losses.labels import Labels
from scripts.benchmarks.published import PublishedStep
from scripts.benchmarks.timing import peak_memory, time_each
from utils.config import ConfigError, load_config, load_section, validate
from utils.console import say
from utils.distributed import World
from utils.names import VOID

PAIRS = ("configs/hmkd/cityscapes_b4_r18.py", "configs/hmkd/cityscapes_r101_b0.py")
CLASSES = 19


def random_batch(batch: int, size: tuple[int, int], pinned: bool) -> dict[str, Any]:
    """Noise with labels in blocks of 32 pixels, a tenth of them void: what a step costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)
    blocks = torch.randint(0, CLASSES, (batch, -(-size[0] // 32), -(-size[1] // 32)), generator=generator)
    void = torch.rand(blocks.shape, generator=generator) < 0.1
    labels = blocks.masked_fill(void, VOID).to(torch.uint8)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, : size[0], : size[1]].contiguous()
    if pinned:
        images, labels = images.pin_memory(), labels.pin_memory()
    return {"image": images, "label": labels, "name": [f"noise {i}" for i in range(batch)]}


def build(config: Experiment, world: World, distil: bool = True) -> Trainer:
    """The config's trainer with random networks; the student alone where it shall not distil.

    Learning rates are a thousandth of the config's: random networks must stay finite.
    """
    names = [f"class {i}" for i in range(CLASSES)]
    torch.manual_seed(0)
    student, _ = build_student(config, "benchmark", names, pretrained=False)
    teacher = build_teacher(config, "benchmark", names, pretrained=False) if distil else None
    distiller = build_distiller(config, "benchmark", student, teacher)
    optimizer = config.optimizer.model_copy(update={"lr": 1e-3 * config.optimizer.lr})
    own = {"optimizer": optimizer, "schedule": Schedule(max_iters=10**6), "curriculum": {}}
    trainer = build_trainer(config.model_copy(update=own), distiller, teacher, world)
    if distil and distiller.method.needs_calibration:
        trainer.calibrate(lambda: [random_batch(2, config.data.crop_size, pinned=False)])
    return trainer


def load_pair(file: str, *options: str) -> Experiment:
    """A config that distils.

    Raises:
        ConfigError: it has no teacher, or as ``load_config``.
    """
    config = load_config(file, Experiment, list(options))
    if config.teacher is None:
        raise ConfigError(f"{file} has no teacher; expected a config that distils, such as {PAIRS[0]}")
    return config


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a large bfloat16 matrix product on this device, random operands."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    return 2 * n**3 / time_each({"matmul": lambda: a @ b}, device, rounds=10, warmup=3)["matmul"].median


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def step_row(
    file: str, options: Sequence[str], device: torch.device, batch: int, size: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """Our step against the published one, its parts, its overhead, memory and use of the device, for one config."""
    config = load_pair(file, *options)
    world = World(0, 1, device)
    ours, alone = build(config, world), build(config, world, distil=False)
    data = random_batch(batch, size, pinned=device.type == "cuda")
    images, labels = data["image"].to(device), data["label"].to(device)

    def teacher_forward():
        with ours.autocast():
            return ours.teacher(images)

    def student_forward():
        with ours.autocast():
            return ours.student(images)

    def forward():
        with ours.autocast():
            return ours.distiller(images, Labels(labels), knowledge)

    def backward():
        terms = forward()
        sum(ours.weights[name] * term for name, term in terms.items()).backward()
        ours.optimizer.zero_grad(set_to_none=True)

    knowledge = teacher_forward()
    plain = ("train.precision=fp32", "train.channels_last=False", "train.compile=False")
    reference = build(load_pair(file, *options, *plain), world)
    theirs = PublishedStep(reference.student, reference.teacher, config.optimizer.model_dump())
    floats, longs = data["image"].float(), data["label"].long()
    alternatives = {
        "published": lambda: theirs(floats, longs), "ours": lambda: ours.train_step([data]),
        "alone": lambda: alone.train_step([data]), "teacher": teacher_forward,
        "student forward": student_forward, "forward": forward, "backward": backward,
    }  # fmt: skip
    if config.train.compile:
        eager = build(load_pair(file, *options, "train.compile=False"), world)
        alternatives["eager"] = lambda: eager.train_step([data])
    if theirs.context is not None:
        alternatives["published, no attention"] = lambda: theirs(floats, longs, attention=False)
    times = time_each(alternatives, device, rounds, warmup=1)
    memory = {name: peak_memory(alternatives[name], device) for name in ("published", "ours")}
    with FlopCounterMode(display=False) as counter:
        ours.train_step([data])
    flops = counter.get_total_flops()
    parts = {
        "teacher": times["teacher"].median, "student forward": times["student forward"].median,
        "losses": times["forward"].median - times["student forward"].median,
        "backward": times["backward"].median - times["forward"].median,
    }  # fmt: skip
    parts["optimizer, copies, reading out"] = times["ours"].median - sum(parts.values())
    ours_s, theirs_s = times["ours"].median, times["published"].median
    overhead = ours_s / (times["teacher"].median + times["alone"].median)
    mfu = flops / ours_s / matmul_rate(device)
    memory_ratio = memory["ours"] / memory["published"]
    free()
    bare = times.get("published, no attention", times["published"]).median / ours_s
    compiled = f", compiled: eager {1e3 * times['eager'].median:.1f} ms" if config.train.compile else ""
    return {
        "what": f"step, {Path(file).stem}", "ours": ours_s, "published": theirs_s, "ratio": theirs_s / ours_s,
        "ratio_without_attention": bare, "spread": times["ours"].spread,
        "batch": batch, "size": size, "images_per_s": batch / ours_s,
        "alone": times["alone"].median, "overhead": overhead, "memory": memory, "memory_ratio": memory_ratio,
        "flops": flops, "mfu": mfu, "parts": parts,
        "note": f"{bare:.2f}x without its attention, {batch / ours_s:.2f} images/s, "
        f"step / (teacher + alone) {overhead:.2f}, "
        f"peak {memory['ours'] / 2**20:.0f} MiB ({memory_ratio:.2f}x), MFU {mfu:.0%}{compiled}",
    }  # fmt: skip


def method_rows(
    file: str,
    options: Sequence[str],
    methods: Sequence[str],
    precisions: Sequence[str],
    device: torch.device,
    batch: int,
    size: tuple[int, int],
    rounds: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Every method instead of the config's: time over teacher + student alone, memory, and whether all was finite.

    Args:
        rounds: timed steps of each method.
        steps: of each method in all, if that is more; every term of every step is checked.
    """
    rows, world = [], World(0, 1, device)
    data = random_batch(batch, size, pinned=device.type == "cuda")
    for precision in precisions:
        base = load_pair(file, *options, f"train.precision={precision}")
        alone = build(base, world, distil=False)
        for method in methods:
            values = base.model_dump() | {"distill": load_section(method, "distill"), "curriculum": {}}
            rows.append({"method": method, "precision": precision, "batch": batch, "size": size})
            try:
                trainer = build(validate(values, Experiment, method), world)
                rows[-1] |= _method_row(trainer, alone, data, device, rounds, steps)
            except (ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
                rows[-1]["error"] = str(error).splitlines()[0]
            trainer = None
            free()
            say(f"{Path(method).stem}, {precision}: {rows[-1].get('error', 'measured')}")
    return rows


def _method_row(
    trainer: Trainer, alone: Trainer, data: dict, device: torch.device, rounds: int, steps: int
) -> dict[str, Any]:
    found: list[dict[str, float]] = []
    images = data["image"].to(device)

    def teacher() -> Tensor:
        with trainer.autocast():
            return trainer.teacher(images)

    alternatives = {
        "full": lambda: found.append(trainer.train_step([data])[0]),
        "teacher": teacher,
        "alone": lambda: alone.train_step([data]),
    }
    times = time_each(alternatives, device, rounds, warmup=1)
    memory, memory_alone = (peak_memory(alternatives[name], device) for name in ("full", "alone"))
    while len(found) < steps:
        alternatives["full"]()
    scale = trainer.scaler.get_scale() if trainer.scaler.is_enabled() else None
    return {
        "ms": 1e3 * times["full"].median, "spread": times["full"].spread,
        "overhead": times["full"].median / (times["teacher"].median + times["alone"].median),
        "memory_mib": memory / 2**20, "memory_alone_mib": memory_alone / 2**20, "steps": len(found),
        "finite": all(math.isfinite(value) for terms in found for value in terms.values()),
        "scale": scale, "terms": found[-1],
    }  # fmt: skip
