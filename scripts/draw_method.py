"""Draws the method as docs/method.svg: what is compared, which parts learn, which arrows carry gradient."""

from html import escape
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "method.svg"
WIDTH, HEIGHT = 850, 442
INK, EDGE = "#1f2933", "#7b8794"
FROZEN, STUDENT, FIXED, LOSS, PLAIN = "#e4e7eb", "#c6f0d2", "#cfe3fb", "#fbdcc0", "#ffffff"
TOP, ABOVE, MIDDLE, BELOW, BOTTOM = 66, 132, 198, 264, 330  # y of the rows
TAPS = {"stage 1": 160, "stage 2": 232, "stage 3": 304, "stage 4": 376, "head": 448}  # x of a network's taps


def text(x: float, y: float, words: str, size: int = 12, anchor: str = "middle", weight: str = "normal") -> str:
    # Not dominant-baseline, which some viewers ignore: a third of the letters' size brings their middle to y.
    return (
        f'<text x="{x}" y="{y + size / 3:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{INK}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, words: str, fill: str, height: float = 34, border: str = "none") -> str:
    """A box around (x, y), with a line of text for each line of ``words``."""
    lines = words.split("\n")
    rectangle = (
        f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width}" height="{height}" rx="6" fill="{fill}" '
        f'stroke="{EDGE}" stroke-dasharray="{border}"/>'
    )
    return "\n".join([rectangle, *(text(x, y + 14 * (i - (len(lines) - 1) / 2), line) for i, line in enumerate(lines))])


def arrow(points: str, gradient: bool) -> str:
    """An arrow along the points, dashed where no gradient flows back."""
    return (
        f'<polyline points="{points}" fill="none" stroke="{INK}" stroke-width="1.5" '
        f'stroke-dasharray="{"none" if gradient else "5 4"}" marker-end="url(#tip)"/>'
    )


def network(y: float, title: str, title_y: float, fill: str, gradient: bool) -> list[str]:
    """The taps of a network from left to right, and its logits."""
    x = list(TAPS.values())
    return [
        text(134, title_y, title, 13, "start", "bold"),
        *(arrow(f"{a + 26},{y} {b - 28},{y}", gradient) for a, b in zip(x[:-1], x[1:], strict=True)),
        arrow(f"474,{y} 704,{y}", gradient),
        *(box(x, y, 52, tap, fill) for tap, x in TAPS.items()),
        box(738, y, 64, "logits", fill),
    ]


def legend(y: float) -> list[str]:
    return [
        arrow(f"20,{y} 60,{y}", gradient=True),
        text(68, y, "gradient flows back", 12, "start"),
        arrow(f"198,{y} 238,{y}", gradient=False),
        text(246, y, "no gradient", 12, "start"),
        *(
            part
            for x, fill, words in [
                (352, FROZEN, "frozen"),
                (434, STUDENT, "student's, trained"),
                (592, FIXED, "measured once, fixed"),
                (772, LOSS, "loss"),
            ]
            for part in (box(x, y, 16, "", fill, 16), text(x + 14, y, words, 12, "start"))
        ),
    ]


def draw() -> str:
    stages = [x for tap, x in TAPS.items() if tap != "head"]
    parts = [
        *network(TOP, "Teacher, frozen (for example SegFormer-B4)", TOP - 34, FROZEN, gradient=False),
        *network(BOTTOM, "Student (for example DeepLabV3-ResNet-18)", BOTTOM + 34, STUDENT, gradient=True),
        box(52, MIDDLE, 64, "image", PLAIN),
        arrow(f"52,{MIDDLE - 17} 52,{TOP} 132,{TOP}", gradient=False),
        arrow(f"52,{MIDDLE + 17} 52,{BOTTOM} 132,{BOTTOM}", gradient=False),
        # Each stage of the teacher in its frame, each stage of the student projected into it.
        *(arrow(f"{x},{TOP + 17} {x},{ABOVE - 17}", gradient=False) for x in stages),
        *(arrow(f"{x},{ABOVE + 15} {x},{MIDDLE - 21}", gradient=False) for x in stages),
        *(arrow(f"{x},{BELOW - 15} {x},{MIDDLE + 21}", gradient=True) for x in stages),
        *(arrow(f"{x},{BOTTOM - 17} {x},{BELOW + 17}", gradient=True) for x in stages),
        *(box(x, ABOVE, 60, "frame", FIXED, 30) for x in stages),
        *(box(x, BELOW, 60, "project", STUDENT, 30) for x in stages),
        box(
            (stages[0] + stages[-1]) / 2,
            MIDDLE,
            284,
            "feature: mean square of the differences,\nmean over the stages",
            LOSS,
            38,
        ),
        # Labels and logits.
        arrow(f"750,{BOTTOM - 17} 750,{MIDDLE + 21}", gradient=True),
        arrow(f"738,{TOP + 17} 738,{MIDDLE - 21}", gradient=False),
        arrow(f"720,{BOTTOM - 17} 720,{BELOW} 590,{BELOW} 590,{MIDDLE + 21}", gradient=True),
        arrow(f"590,{ABOVE + 12} 590,{MIDDLE - 21}", gradient=False),
        box(590, ABOVE, 60, "labels", PLAIN, 24),
        box(590, MIDDLE, 110, "task:\ncross-entropy", LOSS, 38),
        box(738, MIDDLE, 110, "logit:\nKL divergence", LOSS, 38),
        text(425, BOTTOM + 64, "loss = task + w₁ · feature + w₂ · logit", 13, "middle", "bold"),
        *legend(BOTTOM + 92),
    ]
    # A background of its own, so that the drawing reads the same on a light and on a dark page.
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10" fill="#ffffff" stroke="{EDGE}"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    OUT.write_text(draw())
    print(f"wrote {OUT}")
