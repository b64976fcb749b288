"""Chooses a recipe by the size and number of the images, and writes it as configs of a teacher and a student."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from statistics import median_low
from textwrap import indent
from typing import Any

METHODS = Path(__file__).resolve().parents[2] / "configs/_base_/methods"
TEMPLATES = Path(__file__).with_name("templates")  # of the configs; {names} are filled in
LARGEST_CROP = 512  # pixels a side
BATCH = 8
PASSES, FEWEST, MOST = 100, 400, 20000  # over the images; the bounds are iterations
BACKBONES = {"student": "mit_b0", "teacher": "resnet18"}
RANDOM_LR, PRETRAINED_LR = {"student": 1e-3, "teacher": 5e-4}, 2e-4


def choose_recipe(sizes: Sequence[tuple[int, int]], weights: Path = Path()) -> tuple[dict[str, Any], list[str]]:
    """What fills the configs for training images of these sizes (H, W in pixels), and why, in sentences.

    ``weights`` is the folder that holds ``pretrained/``; ImageNet weights are used where they are there.
    """
    height, width = (median_low(sides) for sides in zip(*sizes, strict=True))
    crop = (min(height, LARGEST_CROP), min(width, LARGEST_CROP))
    iters = min(MOST, max(FEWEST, 100 * round(PASSES * len(sizes) / BATCH / 100)))
    interval = iters // 8
    values = {"crop_size": crop, "iters": iters, "warmup": iters // 10, "batch": BATCH, "interval": interval}
    values |= {"log": min(50, iters // 20), "windows": ""}
    choices = [
        f"crop {crop[0]} x {crop[1]} (H x W) of images of {height} x {width}: data.crop_size",
        f"{iters} iterations of {BATCH} images, {iters * BATCH / len(sizes):.0f} passes over {len(sizes)} images: "
        "schedule.max_iters, train.batch_size",
        f"validation and checkpoint every {interval} iterations: eval.interval, checkpoint.interval",
    ]
    for name, backbone in BACKBONES.items():
        file = f"pretrained/{backbone}.pth"
        there = (weights / file).is_file()
        values[f"{name}_weights"] = f', pretrained="{file}"' if there else ""
        values[f"{name}_lr"] = rate = PRETRAINED_LR if there else RANDOM_LR[name]
        start = file if there else f"random weights ({file} is not there; python scripts/download_pretrained.py)"
        keys = "student.backbone, student.pretrained, optimizer.lr"
        choices.append(f"the {name}, {backbone}, starts from {start} with learning rate {rate}: {keys} in {name}.py")
    if max(height / crop[0], width / crop[1]) > 2:
        stride = tuple(side * 2 // 3 for side in crop)
        values["windows"] = f', mode="slide", crop_size={crop}, stride={stride}'
        choices.append("large images are evaluated in windows of the crop's size: eval.mode")
    return values, choices


def write_configs(
    recipe: Mapping[str, Any], data: Mapping[str, Any], name: str, folder: Path, unlabelled: str | None = None
) -> None:
    """Writes student.py, teacher.py and hmkd.py to a folder, which must be there.

    Args:
        data: the keys of the data section that say which data.
        name: of the data, and of the folder in work_dirs where hmkd.py finds the teacher's weights.
        unlabelled: list of images without labels, from which hmkd.py learns too.
    """
    data = {**data, "crop_size": recipe["crop_size"]}
    entries = [f"{key}={pformat(value, width=108, compact=True, sort_dicts=False)}" for key, value in data.items()]
    values = {**recipe, "name": name, "root": data["root"], "data": indent(",\n".join(entries), "    ")}
    values["method"] = Path(os.path.relpath(METHODS / "hmkd.py", folder)).as_posix()
    values |= {"list": unlabelled, "half": recipe["batch"] // 2}
    templates = {
        name: (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8") for name in ("student", "teacher", "hmkd")
    }
    if unlabelled is not None:
        templates["hmkd"] += (TEMPLATES / "unlabelled.txt").read_text(encoding="utf-8")
    for file, text in templates.items():
        (folder / f"{file}.py").write_text(text.format(**values), encoding="utf-8")
