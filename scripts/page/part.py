"""The values that page.html shows for the runs of one data set; the template escapes all text.

A cell of a table is a text, or a dict with ``text``, the ``attributes`` of its element and what else it holds.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from scripts._runs import Run
from scripts.comparison.intervals import Interval
from scripts.comparison.report import by_miou, gain, notes, points, summarize
from scripts.page.charts import HEIGHT, WIDTH, bubble_chart, line_chart, style
from scripts.page.measure import KINDS, make_pictures
from utils.files import write_atomically

LIMIT = 4.5e6  # bytes of the pictures of all parts
SHOWN = 12  # worst, and most improved, images
PICTURE = 256  # pixels across, before it is made smaller to fit into the limit
SMALLEST = 0.0005  # share of a class that the confusion matrix shows
LIGHT, DARK = np.array([(255, 221, 120), (27, 38, 59)], float)  # of a map of disagreement, where it is largest and 0
Cell = str | dict[str, Any]


def percent(value: float | None, signed: bool = False) -> str:
    return "–" if value is None or value != value else f"{100 * value:{'+' if signed else ''}.2f}"


def cell(text: str, **attributes: Any) -> Cell:
    return {"text": text, "attributes": {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items()}}


def gain_cells(values: Sequence[float]) -> list[Cell]:
    """Differences with their sign, and a bar to the right for a gain and to the left for a loss."""
    largest = max((abs(value) for value in values if value == value), default=0) or 1
    kinds = ["up" if value > 0 else "down" if value < 0 else "same" for value in values]
    return [cell(percent(value, True), class_=kind, style=f"--g:{abs(value) / largest:.3f}")
            for kind, value in zip(kinds, values, strict=True)]  # fmt: skip


def webp(image: np.ndarray, quality: int = 101) -> str:
    """An RGB image as text for ``src``; above 100 without loss."""
    data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def flat(value: Any, key: str = "") -> dict[str, str]:
    """``{'a': {'b': 1}}`` -> ``{'a.b': '1'}``"""
    if isinstance(value, Mapping) and value:
        return {k: text for name, v in value.items() for k, text in flat(v, f"{key}.{name}" if key else name).items()}
    return {key: value if isinstance(value, str) else repr(value)}


def settings(what: str, values: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """All keys of the runs' config or environment, and those that differ."""
    rows = {key: [each.get(key, "–") for each in values] for key in dict.fromkeys(k for each in values for k in each)}
    few = {key: row for key, row in rows.items() if len(set(row)) > 1}
    marked = [
        [key, *(cell(text, class_="differs") if key in few else text for text in row)] for key, row in rows.items()
    ]
    return {"what": what, "differ": [[key, *row] for key, row in few.items()], "all": marked}


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


def intervals(
    what: str, dots: Mapping[str, Sequence[float]], found: Mapping[str, Interval], show: Any
) -> dict[str, Any]:
    """A row for each method: its seeds, their mean and 95 % interval as places on one axis, and as figures."""
    ends = [value for values in dots.values() for value in values] + [0.0] * (show is gain)
    ends += [each.mean + side * (each.half or 0) for each in found.values() for side in (-1, 1)]
    low, span = min(ends), max(ends) - min(ends) or 1

    def at(value: float) -> float:
        return round(8 + 224 * (value - low) / span, 1)

    rows = []
    for name, each in found.items():
        bar = None if each.half is None else (at(each.mean - each.half), at(each.mean + each.half))
        zero = at(0) if show is gain else None
        strip = {"dots": [at(value) for value in dots[name]], "mean": at(each.mean), "bar": bar, "zero": zero}
        rows.append([name, {"text": "", "attributes": {}, "strip": strip}, show(each)])
    return {"what": what, "axis": f"{100 * low:.2f} to {100 * (low + span):.2f}", "rows": rows}


def comparison(title: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals and paired differences of compare.py, over all seeds."""
    methods = {name: dict(method) for name, method in result["methods"].items()}
    alone, strips, losses = next(iter(methods)), [], []
    for method in methods.values():
        method["summary"] = summarize(method["runs"], methods[alone]["runs"])
    others = [name for name in by_miou(methods) if name != alone]
    for split in (split for split in ("val", "test") if result["split"][split]):
        mious = {name: {seed: run[split]["miou"] for seed, run in methods[name]["runs"].items()} for name in methods}
        facts = {name: methods[name]["summary"][split] for name in by_miou(methods)}
        dots = {name: list(mious[name].values()) for name in facts}
        strips.append(intervals(f"{split} mIoU, %", dots, {name: facts[name]["mean"] for name in facts}, points))
        if not others:
            continue
        dots = {name: [miou - mious[alone][seed] for seed, miou in mious[name].items()] for name in others}
        what = f"{split} mIoU, paired difference from {alone}, points"
        strips.append(intervals(what, dots, {name: facts[name]["gain"] for name in others}, gain))
        rows = [
            [label, *(points(facts[name]["class_gains"][label], signed=True)
                      + " ▼" * (label in facts[name]["negative_transfer"]) for name in others)]
            for label in facts[alone]["class_gains"]
        ]  # fmt: skip
        losses.append({"what": f"{split} IoU, paired difference of each class, points", "rows": rows})
    return {"title": title, "strips": strips, "others": others, "losses": losses, "notes": notes(result)}


def figures(group: Any, styles: Mapping[str, dict], before: str | None) -> dict[str, Any]:
    """What was measured: classes, confusion matrices, agreement with the teacher, accuracy against time and size."""
    names, metrics = group.dataset.class_names, {name: scores.metrics for name, scores in group.scores.items()}
    students = [name for name in metrics if name in styles and name != before]
    color = {name: styles.get(name, {"color": "teacher"})["color"] for name in metrics}
    ious = {name: metrics[name].per_class_iou for name in metrics}
    pairs = [[a - b for a, b in zip(ious[name], ious[before], strict=True)] for name in students] if before else []
    classes = []
    for k, (label, *gains) in enumerate(zip(names, *map(gain_cells, pairs), strict=True)):
        bars = [{"name": name, "color": color[name], "width": 100 * np.nan_to_num(iou[k]), "text": percent(iou[k])}
                for name, iou in ious.items()]  # fmt: skip
        best = max(np.nan_to_num(iou[k]) for iou in ious.values())
        edges = [percent(of.per_class_boundary_iou[k]) for of in metrics.values()]
        classes.append([label, {**cell("", class_="bars", data_sort=best), "bars": bars}, *gains, *edges])
    matrices = {}
    for name, of in metrics.items():
        shares = np.array(of.confusion_matrix) / np.maximum(1, np.sum(of.confusion_matrix, 1, keepdims=True))
        matrices[name] = [
            [label, f"{sum(counts)}", *(cell(f"{100 * v:.1f}", style=f"--v:{100 * v:.0f}") if v >= SMALLEST else ""
                                        for v in row)]
            for label, row, counts in zip(names, shares, of.confusion_matrix, strict=True)
        ]  # fmt: skip
    agreement, maps = [], []
    for name, scores in group.scores.items():
        if teacher := group.subjects[name].teacher:
            kinds, share = scores.kinds[[0, 2, 3, 4]], scores.differs / len(scores.images)
            agreement.append([name, teacher, *(percent(part) for part in kinds / max(1, kinds.sum()))])
            image = (DARK + (share / (share.max() or 1))[..., None] * (LIGHT - DARK)).round().astype(np.uint8)
            text = f"{name} and {teacher} differ in {percent(share.mean())} % of the pixels"
            maps.append(
                {"src": webp(image.repeat(6, 0).repeat(6, 1)), "text": f"{text}; at most {percent(share.max())} %"}
            )
    times = {name: scores.milliseconds for name, scores in group.scores.items()}
    return {
        "class_header": [f"{name} − {before}" for name in students if before] + [f"{n}: boundary IoU" for n in metrics],
        "classes": classes, "class_names": names, "matrices": matrices, "agreement": agreement, "maps": maps,
        "agreement_header": [list(KINDS)[kind] for kind in (0, 2, 3, 4)], "color": color,
        "chart": bubble_chart([(n, times[n], 100 * m.miou, group.sizes[n], color[n]) for n, m in metrics.items()]),
    }  # fmt: skip


def images(group: Any, students: Sequence[str], before: str | None, limit: float) -> dict[str, Any]:
    """The score of every image, and the worst and most improved as pictures, which need at most ``limit`` bytes."""
    scores, places = group.scores, {name: index for index, name in enumerate(group.dataset.names)}
    after = max(students, key=lambda name: (name != before, scores[name].metrics.miou))
    names, gains = list(scores[after].images), {}
    if before:
        gains = {name: scores[after].images[name] - scores[before].images[name] for name in names}
    mean = {name: sum(scores[student].images[name] for student in students) for name in names}
    chosen = {
        "worst": sorted((name for name in names if mean[name] == mean[name]), key=mean.get)[:SHOWN],
        "most improved": sorted((name for name in gains if gains[name] > 0), key=gains.get, reverse=True)[:SHOWN],
    }
    pictures = {
        name: make_pictures(group.dataset, places[name], group.subjects, PICTURE)
        for name in dict.fromkeys(sum(chosen.values(), []))
    }
    while True:
        texts = {name: [(of, webp(image, 80 if of == "image" else 101)) for of, image in each]
                 for name, each in pictures.items()}  # fmt: skip
        size = sum(len(src) for names in chosen.values() for name in names for _, src in texts[name])
        if size < limit:
            break
        pictures = {name: [(of, cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_NEAREST))
                           for of, image in each] for name, each in pictures.items()}  # fmt: skip
    rows = [[name, *(percent(of.images[name]) for of in scores.values())] for name in names]
    if gains:
        rows = [[*row, last] for row, last in zip(rows, gain_cells(list(gains.values())), strict=True)]
    title = f"{after} − {before}" if before else ""
    return {"rows": rows, "gain": title, "header": [*scores, *([title] if gains else [])],
            "chosen": {kind: [(name, texts[name]) for name in names] for kind, names in chosen.items()},
            "mious": {row[0]: ", ".join(f"{name} {text}" for name, text in zip(scores, row[1:], strict=False)) for row in rows},
            "unreadable": list(group.unreadable.items())}  # fmt: skip


def values_of_part(group: Any, parts: int) -> dict[str, Any]:
    """What page.html shows of a group of runs (``scripts.report.Group``), one of ``parts``."""
    runs, students = group.runs, [run.title for run in group.runs if run.title in group.scores]
    styles = {run.title: style(number) for number, run in enumerate(runs)}
    before = students[0] if len(students) > 1 else group.subjects[students[0]].teacher if students else None
    miou = {name: scores.metrics.miou for name, scores in group.scores.items()}
    tiles = [("runs", f"{len(runs)}", f"{sum(run.finished for run in runs)} finished")]
    if students:
        best = max(students, key=miou.get)
        tiles.append(("best student", f"{percent(miou[best])} %", best))
        if before not in (None, best):
            tiles.append(("gain", percent(miou[best] - miou[before], signed=True), f"points over {before}"))
    tiles += [("teacher", f"{level:.2f} %", name) for name, level in group.levels.items()]
    spent = sum(run.seconds * run.processes for run in runs) / 3600
    tiles.append(("cost of all runs", f"{spent:.2f} h", "time of work × processes"))
    data = runs[0].config.data
    return {
        "title": f"{data.type}: {data.root}, {data.val_list}" + (f", {len(group.dataset)} images" if group.dataset else ""),
        "tiles": tiles, "notes": group.all_notes, "header": group.page_header, "rows": group.page_rows, "styles": styles,
        "runs": [run.title for run in runs], "curves": curves(runs, styles, group.levels), "kinds": KINDS,
        "comparisons": [comparison(*pair) for pair in group.results.items()],
        "settings": [settings("config", [flat(run.config.model_dump()) for run in runs]),
                     settings("environment", [run.facts for run in runs])],
        "figures": figures(group, styles, before) if students else None,
        "images": images(group, students, before, LIMIT / parts) if students else None,
        "palette": dict(zip(group.dataset.class_names, group.dataset.palette.tolist(), strict=True)) if students else {},
    }  # fmt: skip


def write_page(path: Path, **values: Any) -> int:
    """Fills page.html; returns the bytes of the page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    frame = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    frame.filters["json"] = lambda value: json.dumps(value, separators=(",", ":"))
    page = frame.get_template("page.html").render(width=WIDTH, height=HEIGHT, **values).encode()
    write_atomically(path, page)
    return len(page)
