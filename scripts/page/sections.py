"""The sections of the page, each from figures to HTML. A section without figures says what is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scripts._runs import Run
from scripts.comparison.intervals import Interval
from scripts.comparison.report import by_miou, gain, notes, points, summarize
from scripts.page.charts import bubble_chart, line_chart, strip, style
from scripts.page.html import Html, element, join, picture, table
from scripts.page.measure import AGREEMENT, Scores
from utils.visualize import Color

Measured = Mapping[str, Scores]
SMALLEST = 0.0005  # a share of a class that the confusion matrix shows


def section(title: str, *content: Any, about: str = "") -> Html:
    intro = [element("p", about, class_="about")] if about else []
    return element("section", element("h3", title), *intro, *content, aria_label=title)


def missing(text: str) -> Html:
    return element("p", text, class_="none")


def percent(value: float | None, signed: bool = False) -> str:
    return "–" if value is None or value != value else f"{100 * value:{'+' if signed else ''}.2f}"


def cell(value: Any, sort: float | None = None, **attributes: Any) -> Html:
    return element("td", value, data_sort=sort, **attributes)


def figure_cell(value: float | None) -> Html:
    return cell(percent(value))


def gain_cell(value: float, largest: float) -> Html:
    """A difference with its sign and a bar, which is to the left for a loss; ``largest`` fills the cell."""
    if value != value:
        return cell("–")
    kind = "up" if value > 0 else "down" if value < 0 else "same"
    return cell(percent(value, signed=True), class_=kind, style=f"--g:{abs(value) / largest:.3f}")


def swatch(name: str, color: Color | None = None, css: str = "") -> Html:
    given = None if color is None else f"background:rgb({','.join(map(str, map(int, color)))})"
    return element("span", element("i", class_=css or None, style=given), name, class_="key")


def legend(entries: Iterable[Html]) -> Html:
    return element("p", *entries, class_="legend")


def hours(run: Run) -> str:
    """Cost: hours times processes."""
    if not run.seconds:
        return "not known"
    return f"{run.seconds * max(1, run.processes) / 3600:.2f} {'GPU' if run.device == 'cuda' else 'CPU'} h"


def overview(header: Sequence[str], rows: Sequence[Sequence[str]], runs: Sequence[Run], measured: Measured) -> Html:
    """What ran: the rows of table.md, with the state, time and cost, and what was measured now."""
    by_title, wide = {run.title: run for run in runs}, []
    for row in rows:
        run, scores = by_title.get(row[0]), measured.get(row[0])
        metrics = scores and scores.metrics
        now = [figure_cell(metrics.miou), figure_cell(metrics.boundary_miou)] if metrics else ["–", "–"]
        if run is None:
            wide.append([*row, *now, "", "", "", "", ""])
            continue
        spent = cell(f"{run.seconds / 60:.1f} min" if run.seconds else "not known", run.seconds)
        commit = run.facts.get("commit", "not known")
        where = f"{run.processes} × {run.facts.get('device', run.device)}" if run.processes else "not known"
        wide.append([*row, *now, run.state, spent, cell(hours(run), run.seconds * run.processes), where,
                     cell(commit[:10] + (" +" if "uncommitted" in commit else ""), title=commit)])  # fmt: skip
    names = [*header, "measured now: mIoU", "boundary IoU", "state", "time", "cost", "device", "commit"]
    text = "Runs and their teachers. mIoU and IoU in %. The student of a run is its best one so far."
    about = (
        "Cost: time of work (train.log, pauses left out) × processes. Boundary IoU: Cheng et al. 2021. "
        "A + after a commit: with uncommitted changes."
    )
    return section("What ran", table(names, wide, text), about=about)


def flat(value: Any, key: str = "") -> dict[str, str]:
    """``{'a': {'b': 1}}`` -> ``{'a.b': '1'}``"""
    if isinstance(value, Mapping) and value:
        return {name: text for k, v in value.items() for name, text in flat(v, f"{key}.{k}" if key else str(k)).items()}
    return {key: repr(value) if not isinstance(value, str) else value}


def configs(runs: Sequence[Run]) -> Html:
    """The keys that differ, and all keys with these highlighted; then the same of the environment."""
    content = []
    for what, values in (
        ("config", [flat(run.config.model_dump()) for run in runs]),
        ("environment", [run.facts for run in runs]),
    ):
        keys = list(dict.fromkeys(key for each in values for key in each))
        differ = {key for key in keys if len({each.get(key) for each in values}) > 1}
        header = [f"{what} key", *(run.title for run in runs)]
        rows = [
            [key, *(cell(each.get(key, "–"), class_="differs" if key in differ else None) for each in values)]
            for key in keys
        ]
        if len(runs) > 1:
            few = [row for row in rows if row[0] in differ]
            caption = f"Differences in the {what}"
            content.append(table(header, few, caption, "text") if few else missing(f"{caption}: none."))
        everything = table(header, rows, f"The whole {what}; differences are marked", "text")
        content.append(element("details", element("summary", f"The whole {what}: {len(keys)} keys"), everything))
    return section("Config and provenance", *content)


def curves(runs: Sequence[Run], teachers: Mapping[str, float]) -> Html:
    """mIoU with the teachers' lines, learning rate, and every loss term.

    Args:
        runs: of one data set.
        teachers: mIoU in per cent by name.
    """
    styles = {run.title: number for number, run in enumerate(runs)}
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for run in runs:
        for line in run.log:
            for term, value in line.items() if "lr" in line else ():
                if term != "step" and isinstance(value, int | float):
                    lines.setdefault(term, {}).setdefault(run.title, []).append((line["step"], value))
    charts = [line_chart("validation mIoU (%)", {run.title: run.curve for run in runs}, styles, teachers, "{:.2f} %")]
    order = ["lr", "loss", *(term for term in lines if term not in ("lr", "loss"))]
    charts += [line_chart("learning rate" if t == "lr" else t, lines.get(t, {}), styles) for t in order]
    keys = legend(swatch(run.title, css=f"bar {style(number)[0]}") for number, run in enumerate(runs))
    about = "Point at a chart, or give it the focus and use the arrow keys, to read its values. Escape hides them."
    return section("Curves", keys, element("div", *charts, class_="charts"), about=about)


def classes(names: Sequence[str], students: Sequence[str], measured: Measured, before: str | None) -> Html:
    """IoU of each class as bars, and gains and losses against ``before``."""
    ious = {name: measured[name].metrics.per_class_iou for name in measured}
    gains = {name: [after - first for after, first in zip(ious[name], ious[before], strict=True)]
             for name in students if before not in (None, name)}  # fmt: skip
    largest = max((abs(g) for each in gains.values() for g in each if g == g), default=0) or 1
    css = {name: style(number)[0] for number, name in enumerate(students)}
    rows = []
    for k, label in enumerate(names):
        bars = [
            element(
                "div",
                element(
                    "i", class_=f"bar {css.get(name, 'teacher')}", style=f"width:{100 * np.nan_to_num(iou[k]):.1f}%"
                ),
                element("b", percent(iou[k])),
                title=name,
                class_="track",
            )
            for name, iou in ious.items()
        ]
        best = max((iou[k] for iou in ious.values() if iou[k] == iou[k]), default=-1)
        rows.append([label, cell(join(bars), round(best, 6), class_="bars"),
                     *(gain_cell(each[k], largest) for each in gains.values())])  # fmt: skip
    header = ["class", "IoU (%)", *(f"{name} − {before}" for name in gains)]
    keys = legend(swatch(name, css=f"bar {css.get(name, 'teacher')}") for name in ious)
    wide = [[name, *(figure_cell(v) for v in (m.miou, m.macc, m.pixel_accuracy, m.boundary_miou))]
            for name, m in ((name, measured[name].metrics) for name in measured)]  # fmt: skip
    overall = table(["network", "mIoU", "mean accuracy", "pixel accuracy", "boundary IoU"], wide, "Over all classes, %")
    about = f"Bars show IoU; the other columns show the gain (to the right) or loss against {before}." if gains else ""
    edges = {name: measured[name].metrics.per_class_boundary_iou for name in measured}
    detail = table(["class", *edges], [[label, *(figure_cell(edges[name][k]) for name in edges)]
                                       for k, label in enumerate(names)], "Boundary IoU of each class, %")  # fmt: skip
    return section("Classes", keys, table(header, rows, "IoU of each class, %"), overall,
                   element("details", element("summary", "Boundary IoU of each class"), detail), about=about)  # fmt: skip


def confusions(names: Sequence[str], measured: Measured) -> Html:
    """The confusion matrix of each network, in per cent of the pixels of each true class."""
    parts = []
    for number, (network, scores) in enumerate(measured.items()):
        rows = []
        for label, counts in zip(names, scores.metrics.confusion_matrix, strict=True):
            total = sum(counts)
            shares = [count / max(1, total) for count in counts]
            cells = [cell(f"{100 * v:.1f}", style=f"--v:{100 * v:.0f}") if v >= SMALLEST else cell("") for v in shares]
            rows.append([label, cell(f"{total:,}", total), *cells])
        header = ["truth", "pixels", *names]
        matrix = table(header, rows, f"{network}: per cent of the true class, predicted as", "sortable heat")
        parts.append(
            element("details", element("summary", network), matrix, open="" if number == len(measured) - 1 else None)
        )
    about = "Each row adds up to 100 %. A button above a column sorts the rows by it. Empty: below 0.05 %."
    return section("Confusion matrix", *parts, about=about)


def images(
    scores: Measured, gains: Mapping[str, float], title: str, unreadable: Mapping[str, str],
    shown: Mapping[str, Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]], keys: Html,
) -> Html:  # fmt: skip
    """The score of every image, and pictures of the worst and the most improved.

    Args:
        scores: of all networks.
        gains: in mIoU, by image; empty: nothing to compare with.
        title: of the gains.
        unreadable: errors of the images that were left out, by name.
        shown: 'worst' and 'improved': (name, (title, picture) ...) of each image.
        keys: legends of the pictures.
    """
    names = list(next(iter(scores.values())).images)
    largest = max((abs(value) for value in gains.values() if value == value), default=0) or 1
    rows = [
        [name, *(figure_cell(each.images[name]) for each in scores.values()),
         *([gain_cell(gains[name], largest)] if gains else [])]
        for name in names
    ]  # fmt: skip
    content = [table(["image", *scores, *([title] if gains else [])], rows, "mIoU of each image, %")]
    if unreadable:
        rows = [[name, text] for name, text in unreadable.items()]
        content.append(table(["image", "error"], rows, f"{len(rows)} image(s) cannot be read and are left out", "text"))
    content.append(keys)
    for kind, heading in (("worst", "The worst images"), ("improved", f"The most improved images: {title}")):
        cards = []
        for name, pictures in shown[kind]:
            cells = [
                element(
                    "figure", picture(image, f"{name}, {of}", 80 if of == "image" else 101), element("figcaption", of)
                )
                for of, image in pictures
            ]
            gained = f", {title} {percent(gains[name], signed=True)}" if gains else ""
            mious = ", ".join(f"{network} {percent(each.images[name])}" for network, each in scores.items())
            cards.append(element("article", element("h5", name), element("p", mious + gained), element("div", *cells)))
        content += [element("h4", heading), *(cards or [missing("There is none.")])]
    return section("Images", *content, about="An image's mIoU is the mean over the classes that it shows.")


def teaching(measured: Measured, teacher_of: Mapping[str, str]) -> Html:
    """Where students and their teachers differ: shares of pixels, and maps over the place in the image."""
    rows, maps = [], []
    for name, teacher in teacher_of.items():
        scores = measured[name]
        rows.append([name, teacher, *(figure_cell(v) for v in scores.agreement / max(1, scores.agreement.sum()))])
        share = scores.disagreement
        top = float(share.max()) or 1.0
        dark, light = np.array([(27, 38, 59), (255, 221, 120)], float)
        image = (dark + (share / top)[..., None] * (light - dark)).round().astype(np.uint8).repeat(6, 0).repeat(6, 1)
        text = (
            f"{name} and {teacher} differ in {percent(float(share.mean()))} % of the pixels, at most {percent(top)} %"
        )
        maps.append(element("figure", picture(image, text), element("figcaption", f"{text} of the images at a place.")))
    if not rows:
        return section("Teacher and student", missing("No student with a teacher was measured."))
    about = "Maps: the brighter, the more images in which the two differ at this place."
    shares = table(["student", "teacher", *AGREEMENT], rows, "Labelled pixels, %")
    return section("Teacher and student", shares, element("div", *maps, class_="maps"), about=about)


def trade_off(measured: Measured, sizes: Mapping[str, float], styles: Mapping[str, str], device: str) -> Html:
    rows = [
        (name, each.milliseconds, 100 * each.metrics.miou, sizes[name], styles.get(name, "teacher"))
        for name, each in measured.items()
    ]
    figures = [[name, cell(f"{m:.2f}"), cell(f"{t:.1f}"), cell(f"{s:.2f}")] for name, t, m, s, _ in rows]
    content = table(["network", "mIoU %", "ms an image", "M parameters"], figures, "Accuracy, time and size")
    about = (
        f"Median time of a prediction as the run validates (its scales, flip and precision) on {device}, while this "
        "page was made. scripts/model_info.py measures the runtimes of deployment."
    )
    keys = legend(swatch(name, css=f"bar {styles.get(name, 'teacher')}") for name in measured)
    chart = element("div", bubble_chart(rows), content, class_="charts")
    return section("Accuracy, time and size", keys, chart, about=about)


def comparison(title: str, result: Mapping[str, Any]) -> Html:
    """Intervals and paired differences of compare.py, over all seeds."""
    methods = {name: dict(method) for name, method in result["methods"].items()}
    alone, content = next(iter(methods)), []
    for method in methods.values():
        method["summary"] = summarize(method["runs"], methods[alone]["runs"])
    order = by_miou(methods)
    for split in (name for name in ("val", "test") if result["split"][name]):
        values = {n: [run[split]["miou"] for run in methods[n]["runs"].values()] for n in order}
        pairs = {n: [run[split]["miou"] - methods[alone]["runs"][seed][split]["miou"]
                     for seed, run in methods[n]["runs"].items()] for n in order if n != alone}  # fmt: skip
        for what, dots, key, show in (
            (f"{split} mIoU, %", values, "mean", points),
            (f"{split} mIoU, paired difference from {alone}, points", pairs, "gain", gain),
        ):
            found = {name: methods[name]["summary"][split][key] for name in dots}
            if found:
                content.append(interval_table(what, found, dots, show, zero=key == "gain"))
        lost = {name: methods[name]["summary"][split] for name in pairs}
        rows = [
            [label, *(cell(points(each["class_gains"][label], signed=True)
                           + (" ▼" if label in each["negative_transfer"] else "")) for each in lost.values())]
            for label in (next(iter(lost.values()))["class_gains"] if lost else ())
        ]  # fmt: skip
        if rows:
            caption = f"{split} IoU, paired difference of each class, points (▼: negative transfer)"
            content.append(table(["class", *lost], rows, caption, "text"))
    content.append(element("ul", *(element("li", note) for note in notes(result))))
    return section(f"Comparison: {title}", *content)


def interval_table(
    caption: str, found: Mapping[str, Interval], dots: Mapping[str, Sequence[float]], show: Callable, zero: bool
) -> Html:
    """A row for each method: its seeds, mean and 95 % interval on one axis, and the figures."""
    ends = [v for values in dots.values() for v in values] + [0.0] * zero
    ends += [each.mean + side * (each.half or 0) for each in found.values() for side in (-1, 1)]
    low, span = min(ends), (max(ends) - min(ends)) or 1

    def place(value: float) -> float:
        return (value - low) / span

    rows = [
        [name, cell(strip(dots[name], each.mean, each.half, place, zero)), cell(show(each), each.mean)]
        for name, each in found.items()
    ]
    axis = f"{100 * low:.2f} to {100 * (low + span):.2f}"
    return table(["method", axis, "mean ± half of the 95 % interval"], rows, caption, "sortable strips")
