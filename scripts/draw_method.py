"""Draws the method as docs/method.svg: what is compared, which parts learn, which arrows carry gradient."""

from html import escape
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "method.svg"
WIDTH, HEIGHT = 850, 508
INK, EDGE = "#1f2933", "#7b8794"
FROZEN, STUDENT, ANCHORED, LOSS, PLAIN = "#e4e7eb", "#c6f0d2", "#cfe3fb", "#fbdcc0", "#ffffff"
TOP, CHAIN, MIDDLE, BELOW, BOTTOM = 66, 150, 230, 322, 396  # y of the rows
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
                (592, ANCHORED, "trained by the anchor"),
                (772, LOSS, "loss"),
            ]
            for part in (box(x, y, 16, "", fill, 16), text(x + 14, y, words, 12, "start"))
        ),
    ]


def draw() -> str:
    parts = [
        *network(TOP, "Teacher, frozen (for example SegFormer-B4)", TOP - 34, FROZEN, gradient=False),
        *network(BOTTOM, "Student (for example DeepLabV3-ResNet-18)", BOTTOM + 34, STUDENT, gradient=True),
        box(52, MIDDLE, 64, "image", PLAIN),
        arrow(f"52,{MIDDLE - 17} 52,{TOP} 132,{TOP}", gradient=False),
        arrow(f"52,{MIDDLE + 17} 52,{BOTTOM} 132,{BOTTOM}", gradient=False),
        # The teacher's side: projected, refined, warped by offsets, standardised. The anchor trains it.
        arrow(f"304,{TOP + 17} 304,{CHAIN - 19}", gradient=False),
        arrow(f"337,{CHAIN} 361,{CHAIN}", gradient=True),
        arrow(f"419,{CHAIN} 441,{CHAIN}", gradient=True),
        arrow(f"495,{CHAIN} 513,{CHAIN}", gradient=True),
        arrow(f"601,{CHAIN} 623,{CHAIN}", gradient=True),
        box(304, CHAIN, 66, "project", ANCHORED),
        box(391, CHAIN, 56, "refine", ANCHORED),
        box(469, CHAIN, 52, "warp", ANCHORED),
        box(558, CHAIN, 86, "standardise", ANCHORED),
        box(658, CHAIN, 66, "classify", ANCHORED),
        arrow(f"658,{CHAIN + 17} 658,{MIDDLE - 21}", gradient=True),
        arrow(f"391,{CHAIN + 17} 391,{MIDDLE} 433,{MIDDLE}", gradient=True),
        arrow(f"469,{MIDDLE - 17} 469,{CHAIN + 19}", gradient=True),
        arrow(f"469,{BELOW - 17} 469,{MIDDLE + 19}", gradient=False),
        box(469, MIDDLE, 68, "offsets", ANCHORED),
        # The student's side.
        arrow(f"304,{BOTTOM - 17} 304,{BELOW + 21}", gradient=True),
        arrow(f"360,{BELOW} 439,{BELOW}", gradient=True),
        arrow(f"497,{BELOW} 558,{BELOW} 558,{MIDDLE + 21}", gradient=True),
        arrow(f"558,{CHAIN + 17} 558,{MIDDLE - 21}", gradient=False),
        box(304, BELOW, 112, "self-attention\n(CNN side only)", PLAIN, 38, "4 3"),
        box(469, BELOW, 56, "refine", STUDENT),
        box(558, MIDDLE, 88, "feature:\nmean square", LOSS, 38),
        # Labels and logits.
        arrow(f"658,{MIDDLE + 33} 658,{MIDDLE + 21}", gradient=False),
        arrow(f"658,{BELOW - 33} 658,{BELOW - 21}", gradient=False),
        arrow(f"738,{BOTTOM - 17} 738,{BELOW} 708,{BELOW}", gradient=True),
        arrow(f"770,{BOTTOM} 788,{BOTTOM} 788,{MIDDLE + 21}", gradient=True),
        arrow(f"770,{TOP} 788,{TOP} 788,{MIDDLE - 21}", gradient=False),
        box(658, MIDDLE, 96, "anchor:\ncross-entropy", LOSS, 38),
        box(658, (MIDDLE + BELOW) / 2, 60, "labels", PLAIN, 24),
        box(658, BELOW, 96, "task:\ncross-entropy", LOSS, 38),
        box(788, MIDDLE, 98, "logit:\nKL divergence", LOSS, 38),
        text(425, 460, "loss = task + w₁ · feature + w₂ · anchor + w₃ · logit", 13, "middle", "bold"),
        *legend(488),
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
