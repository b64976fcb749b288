"""The page: its parts, one for each data set, in the frame of page.html."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

from scripts.page import sections
from scripts.page.charts import style
from scripts.page.html import Html, element, join
from scripts.page.measure import AGREEMENT, ALONE, extremes, pictures_of
from utils.files import write_atomically
from utils.visualize import VOID_COLOR

LIMIT = 4.6e6  # bytes of all parts together
SHOWN = 12  # worst, and most improved, images
WIDTH, NARROWEST = 256, 64  # pixels of a picture
SHRINK = 0.75
HERE = Path(__file__).parent


def part_of_page(group: Any, header: Sequence[str], number: int, parts: int) -> Html:
    """The part of the page for one data set.

    Args:
        group: the runs and their figures (``scripts.report.Group``).
        header: of its rows.
        number: of the part, from 1 on.
        parts: in the page; each may have an equal share of the bytes.
    """
    data, scores, students = (
        group.runs[0].config.data,
        group.scores,
        [r.title for r in group.runs if r.title in group.scores],
    )
    styles = {run.title: style(index)[0] for index, run in enumerate(group.runs)}
    before = students[0] if len(students) > 1 else group.teacher_of.get(students[0]) if students else None
    images = "" if group.dataset is None else f", {len(group.dataset)} images, {group.dataset.num_classes} classes"
    heading = f"{data.type}: {data.root}, {data.val_list}{images}"
    notes = [*group.notes, *(f"{run.title}: {note}" for run in group.runs for note in run.notes)]
    content = [tiles(group, students, before)]
    if notes:
        content.append(
            element("aside", element("h3", "To be known"), element("ul", *(element("li", n) for n in notes)))
        )
    content += [sections.overview(header, group.rows, group.runs, scores)]
    content += [sections.comparison(title, result) for title, result in group.results.items()]
    content += [sections.curves(group.runs, group.levels)]
    if scores:
        names = group.dataset.class_names
        device = str(next(iter(group.subjects.values())).device)
        content += [sections.classes(names, [run.title for run in group.runs], scores, before)]
        content += [sections.trade_off(scores, group.sizes, styles, device)]
        content += [sections.confusions(names, scores), sections.teaching(scores, group.teacher_of)]
    else:
        content += [sections.section(title, sections.missing("No network was measured; see “To be known”."))
                    for title in ("Classes", "Accuracy, time and size", "Confusion matrix", "Teacher and student", "Images")]  # fmt: skip
    content += [sections.configs(group.runs)]
    if scores:
        content.insert(-1, pictures(group, students, before, LIMIT / parts - len(join(content).encode())))
    return element("article", element("h2", heading), *content, class_="part", id=f"part-{number}")


def tiles(group: Any, students: Sequence[str], before: str | None) -> Html:
    """The figures that are asked for first."""
    found = [("runs", str(len(group.runs)), f"{sum(run.state == 'finished' for run in group.runs)} finished")]
    if group.scores and students:
        miou = {name: scores.metrics.miou for name, scores in group.scores.items()}
        best = max(students, key=miou.get)
        found.append(("best student", f"{sections.percent(miou[best])} %", best))
        if before not in (None, best):
            found.append(("gain", sections.percent(miou[best] - miou[before], signed=True), f"points over {before}"))
        for teacher in dict.fromkeys(group.teacher_of.values()):
            found.append(("teacher", f"{sections.percent(miou[teacher])} %", teacher))
    spent = sum(run.seconds * max(1, run.processes) for run in group.runs) / 3600
    found.append(("cost of all runs", f"{spent:.2f} h", "hours × processes"))
    return element(
        "dl", *(element("div", element("dt", a), element("dd", b, element("small", c))) for a, b, c in found)
    )


def pictures(group: Any, students: Sequence[str], before: str | None, limit: float) -> Html:
    """The section of the images, with pictures so small that it needs no more bytes than ``limit``."""
    scores, after = group.scores, max(students, key=lambda name: (name != before, group.scores[name].metrics.miou))
    gains = (
        {} if before is None else {n: scores[after].images[n] - scores[before].images[n] for n in scores[after].images}
    )
    title, places = f"{after} − {before}", {name: index for index, name in enumerate(group.dataset.names)}
    chosen = extremes(scores, students, gains, SHOWN)
    shown = {
        name: pictures_of(group.dataset, places[name], group.subjects, WIDTH)
        for name in {*chosen["worst"], *chosen["improved"]}
    }
    colors = zip(group.dataset.class_names, group.dataset.palette, strict=True)
    kinds = AGREEMENT if group.teacher_of else ALONE
    keys = join([sections.legend(sections.swatch(name, color) for name, color in colors),
                 sections.legend(sections.swatch(name, color) for name, color in (kinds | {"void": VOID_COLOR}).items())])  # fmt: skip
    while True:
        cards = {kind: [(name, shown[name]) for name in names] for kind, names in chosen.items()}
        found = sections.images(scores, gains, title, group.unreadable, cards, keys)
        width = next(iter(shown.values()))[0][1].shape[1] if shown else 0
        if len(found) < limit or width < NARROWEST:
            return found
        shown = {name: [(of, shrink(image)) for of, image in each] for name, each in shown.items()}


def shrink(image: np.ndarray) -> np.ndarray:
    size = [max(1, round(SHRINK * side)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)


def write_page(path: Path, titles: Sequence[str], notes: Sequence[str], parts: Sequence[Html]) -> int:
    """Writes the page; returns its bytes."""
    text = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    about = join(element("p", note, class_="about") for note in notes)
    content = Template(text["html"]).substitute(
        title=element("title", f"Report: {', '.join(titles)}"), css=text["css"], js=text["js"],
        time=f"{datetime.now():%Y-%m-%d %H:%M}", notes=about, parts=join(parts),
    ).encode()  # fmt: skip
    write_atomically(path, content)
    return len(content)
