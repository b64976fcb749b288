"""Chooses a recipe by the size and number of the images, and writes it as configs of a teacher and a student."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from statistics import median_low
from textwrap import indent
from typing import Any, NamedTuple

METHODS = Path(__file__).resolve().parents[2] / "configs/_base_/methods"
LARGEST_CROP = 512  # pixels a side
BATCH = 8
PASSES, FEWEST, MOST = 100, 400, 20000  # over the images; the bounds are iterations
STUDENT = {"backbone": "mit_b0", "head": "segformer", "width": 128}
TEACHER = {"backbone": "resnet18", "head": "segformer", "width": 128}
WEIGHTS = {"mit_b0": "pretrained/mit_b0.pth", "resnet18": "pretrained/resnet18.pth"}

STUDENT_CONFIG = """\
# SegFormer-B0 alone, on the data of {root}. Written by scripts/prepare_data.py.
data = {data}
student = {student}
optimizer = {optimizer}
schedule = {schedule}
train = {train}
eval = {eval}
checkpoint = {checkpoint}
log = {log}
"""
TEACHER_CONFIG = """\
# The teacher: ResNet-18 with SegFormer's head, on the same images as the student. A larger one may teach more.
_base_ = ["student.py"]
student = {teacher}
optimizer = {optimizer}
"""
HMKD_CONFIG = """\
# The student of student.py, taught by the network of teacher.py with HMKD.
_base_ = ["student.py", {method!r}]
teacher = {teacher}
distill = dict(logit=4.0)
"""


class Recipe(NamedTuple):
    """Sections of the configs by name, ``teacher`` and ``teacher_optimizer`` among them, and why, in sentences."""

    sections: dict[str, dict[str, Any]]
    choices: list[str]


def choose_recipe(sizes: Sequence[tuple[int, int]], weights: Path = Path()) -> Recipe:
    """A recipe for training images of these sizes (H, W in pixels).

    Args:
        sizes: of each training image.
        weights: the folder that holds ``pretrained/``, where ImageNet weights are used if they are there.
    """
    height, width = (median_low(sides) for sides in zip(*sizes, strict=True))
    crop = (min(height, LARGEST_CROP), min(width, LARGEST_CROP))
    iters = min(MOST, max(FEWEST, 100 * round(PASSES * len(sizes) / BATCH / 100)))
    interval = iters // 8
    networks = {"student": dict(STUDENT), "teacher": dict(TEACHER)}
    choices = [
        f"crop {crop[0]} x {crop[1]} (H x W) of images of {height} x {width}: data.crop_size",
        f"{iters} iterations of {BATCH} images, {iters * BATCH / len(sizes):.0f} passes over {len(sizes)} images: "
        "schedule.max_iters, train.batch_size",
        f"validation and checkpoint every {interval} iterations: eval.interval, checkpoint.interval",
    ]
    rates = {"student": 1e-3, "teacher": 5e-4}
    for name, network in networks.items():
        file = WEIGHTS[network["backbone"]]
        if (weights / file).is_file():
            network["pretrained"], rates[name] = file, 2e-4
        choices.append(
            f"the {name}, {network['backbone']}, starts from {network.get('pretrained', 'random weights')} with "
            f"learning rate {rates[name]}: student.backbone, student.pretrained, optimizer.lr in {name}.py"
            + ("" if "pretrained" in network else f" ({file} is not there; python scripts/download_pretrained.py)")
        )
    evaluation: dict[str, Any] = {"interval": interval}
    if max(height / crop[0], width / crop[1]) > 2:
        evaluation |= {"mode": "slide", "crop_size": crop, "stride": tuple(side * 2 // 3 for side in crop)}
        choices.append("large images are evaluated in windows of the crop's size: eval.mode")
    return Recipe(
        {
            "data": {"crop_size": crop},
            "student": networks["student"],
            "teacher": networks["teacher"],
            "optimizer": {
                "type": "adamw", "lr": rates["student"], "head_lr_mult": 2.0, "weight_decay": 0.01,
                "decay_norm_bias": False,
            },
            "teacher_optimizer": {"lr": rates["teacher"]},
            "schedule": {"max_iters": iters, "power": 1.0, "warmup_iters": iters // 10},
            "train": {"batch_size": BATCH, "precision": "bf16"},
            "eval": evaluation,
            "checkpoint": {"interval": interval, "keep": 1},
            "log": {"interval": min(50, iters // 20)},
        },
        choices,
    )  # fmt: skip


def write_configs(recipe: Recipe, data: Mapping[str, Any], name: str, folder: Path) -> None:
    """Writes student.py, teacher.py and hmkd.py to a folder, which must be there.

    Args:
        recipe: what was chosen.
        data: the keys of the data section that say which data.
        name: of the data; hmkd.py reads the teacher's weights in ``work_dirs/NAME/teacher``.
        folder: of the configs.
    """
    sections = {key: _call(value) for key, value in recipe.sections.items() if key != "data"}
    student = STUDENT_CONFIG.format(
        root=data["root"], data=_call({**data, **recipe.sections["data"]}, lines=True), **sections
    )
    teacher = TEACHER_CONFIG.format(
        teacher=_call({"_delete_": True, **recipe.sections["teacher"]}), optimizer=sections["teacher_optimizer"]
    )
    trained = {key: value for key, value in recipe.sections["teacher"].items() if key != "pretrained"}
    hmkd = HMKD_CONFIG.format(
        method=Path(os.path.relpath(METHODS / "hmkd.py", folder)).as_posix(),
        teacher=_call({**trained, "weights": f"work_dirs/{name}/teacher/student.safetensors"}),
    )
    for file, text in {"student.py": student, "teacher.py": teacher, "hmkd.py": hmkd}.items():
        (folder / file).write_text(text, encoding="utf-8")


def _call(values: Mapping[str, Any], lines: bool = False) -> str:
    """``dict(key=value, ...)``, in one line or one line a key."""
    entries = [f"{key}={pformat(value, width=108, compact=True, sort_dicts=False)}" for key, value in values.items()]
    if not lines:
        return f"dict({', '.join(entries)})"
    body = indent(",\n".join(entries), "    ")
    return f"dict(\n{body},\n)"
