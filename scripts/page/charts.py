"""Charts for page.html: the places of their lines, dots and ticks in a drawing of ``WIDTH`` x ``HEIGHT``."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, WIDTH - 14, 14, HEIGHT - 40  # edges of the axes
SHOWN = 240  # points of a line at most
Points = Sequence[tuple[float, float]]


def style(number: int) -> dict[str, str]:
    """CSS class and dashes of a run; together they repeat after 21 runs."""
    return {"color": f"c{number % 7}", "dashes": ("", "7 4", "2 3")[number // 7 % 3]}


def axis(values: Iterable[float], first: float, last: float) -> tuple[list[tuple[float, str]], Callable]:
    """Ticks as (place, text), and the function that gives the place of a value between ``first`` and ``last``."""
    values = list(values)
    ticks = MaxNLocator(nbins=5).tick_values(min(values), max(values))

    def place(value: float) -> float:
        return round(first + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (last - first), 1)

    return [(place(tick), f"{tick:.6g}") for tick in ticks], place


def line_chart(
    title: str, lines: Mapping[str, Points], styles: Mapping[str, dict], levels: Mapping[str, float]
) -> dict:
    """Lines of (step, value) by run. ``levels``: values that do not change, such as a teacher's mIoU."""
    known = {name: [point for point in points if math.isfinite(point[1])] for name, points in lines.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return {"title": title, "points": []}
    x, y = zip(*(point for points in known.values() for point in points), strict=True)
    (xticks, at_x), (yticks, at_y) = axis([0, *x], LEFT, RIGHT), axis([*y, *levels.values()], BOTTOM, TOP)
    drawn, shown = [], []
    for name, points in known.items():
        count = min(SHOWN, len(points))  # evenly spread, with the first and the last
        thin = [points[round(i * (len(points) - 1) / max(1, count - 1))] for i in range(count)]
        places = [(at_x(step), at_y(value)) for step, value in thin]
        drawn.append({**styles[name], "path": "M" + "L".join(f"{a} {b}" for a, b in places)})
        shown += [
            {"x": a, "y": b, "r": 3 if count <= 20 else 0, "c": styles[name]["color"], "t": f"{name} {v:.5g} at {s}"}
            for (a, b), (s, v) in zip(places, thin, strict=True)
        ]
    ends = "; ".join(f"{name} ends at {points[-1][1]:.5g}" for name, points in known.items())
    return {
        "title": title, "xticks": xticks, "yticks": yticks, "xlabel": "iteration", "lines": drawn, "points": shown,
        "levels": [(name, at_y(level)) for name, level in levels.items()], "text": f"{title}: {ends}.",
    }  # fmt: skip


def bubble_chart(networks: Sequence[tuple[str, float, float, float, str]]) -> dict[str, Any]:
    """mIoU (%) against ms an image: (name, ms, mIoU, million parameters, CSS class). A circle's area is the size."""
    _, times, mious, sizes, _ = zip(*networks, strict=True)
    pad = max(1.0, 0.15 * (max(mious) - min(mious)))
    xticks, at_x = axis([0, 1.1 * max(times)], LEFT, RIGHT)
    yticks, at_y = axis([min(mious) - pad, max(mious) + pad], BOTTOM, TOP)
    shown = [
        {"x": at_x(ms), "y": at_y(miou), "r": round(5 + 17 * math.sqrt(size / max(sizes)), 1), "c": f"bubble {color}",
         "t": f"{name}: {miou:.2f} %, {ms:.1f} ms, {size:.2f} M parameters"}
        for name, ms, miou, size, color in sorted(networks, key=lambda network: -network[3])
    ]  # fmt: skip
    text = "; ".join(point["t"] for point in shown)
    return {"title": "mIoU (%), time and size", "xlabel": "ms an image", "xticks": xticks, "yticks": yticks,
            "points": shown, "text": text}  # fmt: skip
