"""Charts as SVG. The script shows the values under the pointer, or at the place that the arrow keys choose."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from scripts.page.html import Html, element, join

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 40  # margins around the axes
COLORS = 7  # of page.css
SHOWN = 240  # points of a line at most
DASHES = (None, "7 4", "2 3")
Points = Sequence[tuple[float, float]]


class Axes:
    """Places values in a chart, and draws its grid, ticks and labels."""

    def __init__(self, x: Iterable[float], y: Iterable[float], xlabel: str, ylabel: str):
        self.xticks, self.yticks = (MaxNLocator(nbins=5).tick_values(min(v), max(v)) for v in map(list, (x, y)))
        self.labels = xlabel, ylabel

    def x(self, value: float) -> float:
        first, last = self.xticks[0], self.xticks[-1]
        return round(LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        first, last = self.yticks[0], self.yticks[-1]
        return round(HEIGHT - BOTTOM - (value - first) / (last - first) * (HEIGHT - TOP - BOTTOM), 1)

    def draw(self) -> Html:
        floor, parts = HEIGHT - BOTTOM, []
        for value in self.yticks:
            y = self.y(value)
            parts.append(element("path", class_="grid", d=f"M{LEFT} {y}H{WIDTH - RIGHT}"))
            parts.append(element("text", f"{value:.6g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
        parts += [element("text", short(v), x=self.x(v), y=floor + 17, text_anchor="middle") for v in self.xticks]
        parts.append(element("text", self.labels[0], x=WIDTH - RIGHT, y=HEIGHT - 5, text_anchor="end", class_="label"))
        return join(parts)


def short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:.6g}"


def style(index: int) -> tuple[str, str | None]:
    """CSS class and dashes of the line of a run; together they repeat after 21 runs."""
    return f"c{index % COLORS}", DASHES[index // COLORS % len(DASHES)]


def frame(title: str, inner: Html, points: list[dict[str, Any]], text: str) -> Html:
    """A chart with its title. ``points`` are what the script shows: x, y (in the drawing), and a text for each."""
    drawing = element("svg", inner, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=text)
    return element(
        "figure", element("figcaption", title), drawing, class_="chart", tabindex=0,
        data_points=json.dumps(points, separators=(",", ":")),
    )  # fmt: skip


def thin(points: Points) -> Points:
    """At most ``SHOWN`` of the points, evenly spread, with the first and the last."""
    if len(points) <= SHOWN:
        return points
    return [points[round(i * (len(points) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def line_chart(
    title: str, lines: Mapping[str, Points], styles: Mapping[str, int], levels: Mapping[str, float] | None = None,
    form: str = "{:.4g}",
) -> Html:  # fmt: skip
    """Lines of (step, value) by run, and horizontal lines of the values that do not change, such as a teacher's mIoU.

    Returns:
        The chart; a sentence where there is no value to draw.
    """
    finite = {name: thin([p for p in points if math.isfinite(p[1])]) for name, points in lines.items()}
    finite, levels = {name: points for name, points in finite.items() if points}, levels or {}
    if not finite:
        return element("p", f"{title}: no value was logged yet.", class_="none")
    x, y = zip(*(point for points in finite.values() for point in points), strict=True)
    axes, parts, shown = Axes([0, *x], [*y, *levels.values()], "iteration", title), [], []
    for name, level in levels.items():
        at = axes.y(level)
        parts.append(element("path", element("title", name), class_="level", d=f"M{LEFT} {at}H{WIDTH - RIGHT}"))
        parts.append(element("text", name, x=WIDTH - RIGHT, y=at - 5, text_anchor="end", class_="label"))
    for name, points in finite.items():
        color, dashes = style(styles[name])
        places = [(axes.x(step), axes.y(value)) for step, value in points]
        path = "M" + "L".join(f"{a:g} {b:g}" for a, b in places)
        parts += [element("path", class_=f"line {color}", d=path, stroke_dasharray=dashes)]
        if len(places) <= 20:
            parts += [element("circle", class_=f"dot {color}", cx=a, cy=b, r=3) for a, b in places]
        shown += [
            {"x": a, "y": b, "c": color, "t": f"{step}: {name} {form.format(value)}"}
            for (a, b), (step, value) in zip(places, points, strict=True)
        ]
    last = "; ".join(f"{name} ends at {form.format(points[-1][1])}" for name, points in finite.items())
    return frame(title, join([axes.draw(), *parts]), shown, f"{title} over the iterations: {last}.")


def bubble_chart(rows: Sequence[tuple[str, float, float, float, str]]) -> Html:
    """mIoU in per cent against milliseconds an image; the area of a circle is the number of parameters.

    Args:
        rows: (name, ms, mIoU, parameters in millions, CSS class) of each network.
    """
    title = "mIoU (%), ms an image, size"
    times, mious, largest = [row[1] for row in rows], [row[2] for row in rows], max(row[3] for row in rows)
    pad = max(1.0, 0.15 * (max(mious) - min(mious)))
    axes = Axes([0, 1.1 * max(times)], [min(mious) - pad, max(mious) + pad], "ms an image", title)
    parts, shown = [], []
    for name, time, miou, size, color in sorted(rows, key=lambda row: -row[3]):
        x, y, radius = axes.x(time), axes.y(miou), round(5 + 17 * math.sqrt(size / largest), 1)
        parts.append(element("circle", class_=f"bubble {color}", cx=x, cy=y, r=radius))
        shown.append({"x": x, "y": y, "c": color, "t": f"{name}: {miou:.2f} %, {time:.1f} ms, {size:.2f} M"})
    text = "; ".join(point["t"] for point in shown)
    return frame(title, join([axes.draw(), *parts]), shown, f"mIoU, time and parameters: {text}.")


def strip(
    values: Sequence[float], mean: float, half: float | None, place: Callable[[float], float], zero: bool
) -> Html:
    """One row of an interval plot: a dot for each seed, the mean as a line, and the 95 % interval as a bar.

    ``place`` gives the place of a value, 0..1, on the axis that all rows share.
    """
    wide, at = 240, lambda value: round(8 + 224 * place(value), 1)
    parts = [element("path", class_="grid", d="M0 14H240")]
    if zero:
        parts += [element("path", class_="level", d=f"M{at(0)} 0V28")]
    if half is not None:
        low, high = at(mean - half), at(mean + half)
        parts.append(
            element("rect", class_="interval", x=low, y=9, width=max(1, round(high - low, 1)), height=10, rx=3)
        )
    parts += [element("circle", class_="seed", cx=at(value), cy=14, r=3.5) for value in values]
    parts += [element("path", class_="mean", d=f"M{at(mean)} 4V24")]
    return element("svg", *parts, viewBox=f"0 0 {wide} 28", class_="strip", aria_hidden="true")
