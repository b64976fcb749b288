"""The values that page.html shows for the runs of one data set; the template escapes all text."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from engine.trackers import flat
from scripts._runs import Run
from scripts.comparison.report import by_miou, gain, notes, points, summarize
from scripts.page.charts import HEIGHT, WIDTH, bubble_chart, line_chart, style
from scripts.page.measure import KINDS, make_pictures
from utils.files import write_atomically

LIMIT, CELL = 4.6e6, 24  # bytes of all parts, and of a cell of their tables
SHOWN = 12  # worst, and most improved, images
PICTURE = 256  # pixels across, before it is made smaller to fit into the limit
LIGHT, DARK = np.array([(255, 221, 120), (27, 38, 59)], float)  # of a map of disagreement, where it is largest and 0


def percent(value: float | None, signed: bool = False) -> str:
    return "–" if value is None or value != value else f"{100 * value:{'+' if signed else ''}.2f}"


def webp(image: np.ndarray, quality: int = 101) -> str:
    """An RGB image as text for ``src``; above 100 without loss."""
    data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def by_key(values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The value of each run by key of its config or environment."""
    return {key: [each.get(key, "–") for each in values] for key in dict.fromkeys(k for each in values for k in each)}


def curves(runs: Sequence[Run], styles: Mapping[str, dict], levels: Mapping[str, float]) -> list[dict]:
    """mIoU with the teachers' lines, the learning rate, and every loss term."""
    lines: dict[str, dict[str, list]] = {"lr": {}, "loss": {}}
    for run in runs:
        for entry in (entry for entry in run.log if "lr" in entry):
            for term, value in entry.items():
                if term != "step" and isinstance(value, int | float):
                    lines.setdefault(term, {}).setdefault(run.title, []).append((entry["step"], value))
    measured = line_chart("validation mIoU (%)", {run.title: run.curve for run in runs}, styles, levels)
    return [measured, *(line_chart(term, of_run, styles, {}) for term, of_run in lines.items())]


def comparison(run: Run) -> dict[str, Any]:
    """Intervals and paired differences of compare.py over all seeds; ``run`` has its result."""
    methods = {name: dict(method) for name, method in run.result["methods"].items()}
    alone, plots, classes = next(iter(methods)), [], []
    for method in methods.values():
        method["summary"] = summarize(method["runs"], methods[alone]["runs"])
    names = by_miou(methods)
    others = [name for name in names if name != alone]
    for split in (split for split in ("val", "test") if run.result["split"][split]):
        facts = {name: methods[name]["summary"][split] for name in names}
        mious = {name: {seed: each[split]["miou"] for seed, each in methods[name]["runs"].items()} for name in names}
        gains = {name: {seed: miou - mious[alone][seed] for seed, miou in mious[name].items()} for name in others}
        for what, dots, key, show in (("", mious, "mean", points), (f", gain over {alone}", gains, "gain", gain)):
            rows = []
            for name, values in dots.items():
                mean, half = facts[name][key].mean, facts[name][key].half or 0
                ends, text = (mean - half, mean, mean + half), show(facts[name][key])
                rows.append({"name": name, "dots": list(values.values()), "ends": ends, "text": text})
            if places := [value for row in rows for value in (*row["dots"], *row["ends"])] + [0.0] * (key == "gain"):
                low, high = min(places), max(places)
                plots.append({"what": f"{split} mIoU{what}", "rows": rows, "low": low, "high": high})
        classes.append({"what": f"{split} IoU, gain over {alone}", "facts": {name: facts[name] for name in others}})
    return {"title": str(run.folder.parents[2]), "plots": plots, "classes": classes, "notes": notes(run.result)}


def figures(group: Any, styles: Mapping[str, dict], before: str | None) -> dict[str, Any]:
    """What was measured, by network; the gains of the students over ``before``; maps of disagreement."""
    metrics, maps = {name: scores.metrics for name, scores in group.scores.items()}, []
    color = {name: styles.get(name, {"color": "teacher"})["color"] for name in metrics}
    ious = {name: np.array(of.per_class_iou) for name, of in metrics.items()}
    for name, scores in group.scores.items():
        if teacher := group.subjects[name].teacher:
            share = scores.differs / len(scores.images)
            image = (DARK + (share / (share.max() or 1))[..., None] * (LIGHT - DARK)).round().astype(np.uint8)
            most = percent(share.max())
            text = f"{name} and {teacher} differ in {percent(share.mean())} % of the pixels, at most {most} %"
            row = [name, teacher, *map(percent, scores.kinds[[0, 2, 3, 4]] / max(1, scores.kinds[:5].sum()))]
            maps.append({"row": row, "src": webp(image.repeat(6, 0).repeat(6, 1)), "text": text})
    others = [name for name in metrics if before and name in styles and name != before]
    return {
        "metrics": metrics, "color": color, "maps": maps,
        "gains": {name: (ious[name] - ious[before]).tolist() for name in others},
        "header": [f"{name} − {before}" for name in others] + [f"{name}: boundary IoU" for name in metrics],
        "chart": bubble_chart([(name, scores.milliseconds, 100 * metrics[name].miou, group.sizes[name], color[name])
                               for name, scores in group.scores.items()]),
    }  # fmt: skip


def images(group: Any, students: Sequence[str], before: str | None, limit: float) -> dict[str, Any]:
    """The score of every image, and the worst and most improved as pictures, which leave room in ``limit`` bytes."""
    places = {name: index for index, name in enumerate(group.dataset.names)}
    mious = {name: scores.images for name, scores in group.scores.items()}
    after = max(students, key=lambda name: (name != before, group.scores[name].metrics.miou))
    gains = {name: miou - mious[before][name] for name, miou in mious[after].items()} if before else {}
    mean = {name: sum(mious[student][name] for student in students) for name in mious[after]}
    worst = sorted((name for name in mean if mean[name] == mean[name]), key=mean.get)[:SHOWN]
    improved = sorted((name for name in gains if gains[name] > 0), key=gains.get, reverse=True)[:SHOWN]
    K = group.dataset.num_classes
    limit = max(limit / 10, limit - CELL * len(mious) * (K * K + 8 * K + len(mean)))
    pictures, width, size = {}, PICTURE, math.inf
    while size > limit and width > 16:
        for name in {*worst, *improved}:
            found = make_pictures(group.dataset, places[name], group.subjects, width)
            pictures[name] = [(of, webp(image, 80 if of == "image" else 101)) for of, image in found]
        size, width = sum(len(text) for name in worst + improved for _, text in pictures[name]), width * 3 // 4
    chosen = {"worst": worst, "most improved": improved}
    return {"mious": mious, "gains": gains, "gain": f"{after} − {before}", "chosen": chosen, "pictures": pictures}


def values_of_part(group: Any, parts: int) -> dict[str, Any]:
    """What page.html shows of a group of runs (``scripts.report.Group``), one of ``parts``."""
    runs, students = group.runs, [run.title for run in group.runs if run.title in group.scores]
    styles = {run.title: style(number) for number, run in enumerate(runs)}
    before = students[0] if len(students) > 1 else group.subjects[students[0]].teacher if students else None
    miou = {name: scores.metrics.miou for name, scores in group.scores.items()}
    configs, environments = [flat(run.config.model_dump()) for run in runs], [run.facts for run in runs]
    return {
        "group": group, "styles": styles, "miou": miou, "before": before,
        "best": max(students, key=miou.get, default=None),
        "curves": curves(runs, styles, group.levels), "comparisons": [comparison(run) for run in runs if run.result],
        "settings": {"config": by_key(configs), "environment": by_key(environments)},
        "figures": figures(group, styles, before) if students else None,
        "images": images(group, students, before, LIMIT / parts) if students else None,
    }  # fmt: skip


def write_page(path: Path, **values: Any) -> int:
    """Fills page.html; returns the bytes of the page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    frame = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    frame.filters |= {"percent": percent, "points": points, "json": partial(json.dumps, separators=(",", ":"))}
    frame.filters["largest"] = lambda values: max((abs(value) for value in values if value == value), default=0) or 1
    page = frame.get_template("page.html").render(width=WIDTH, height=HEIGHT, kinds=KINDS, **values).encode()
    write_atomically(path, page)
    return len(page)
