"""HTML and SVG from values. All text is escaped, so that no name or config value can become markup."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

LOSSLESS = 101  # of OpenCV's WebP


class Html(str):
    """Text that is HTML already."""


def escape(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[Any]) -> Html:
    return Html("".join(map(escape, parts)))


def element(name: str, *content: Any, **attributes: Any) -> Html:
    """An element of HTML or SVG. ``class_`` is the attribute class, ``data_x`` is data-x; None leaves one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{join(content)}" + ("" if name == "img" else f"</{name}>"))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str, kind: str = "sortable") -> Html:
    """A table in a frame that scrolls. A value that is not a cell yet becomes one; the first of a row heads it.

    Args:
        header: of the columns.
        rows: of values or cells (``td`` elements).
        caption: says what it shows.
        kind: CSS classes; the script makes the columns of a ``sortable`` table sort its rows.
    """
    head = element("tr", *(element("th", value, scope="col") for value in header))
    body = (
        element("tr", element("th", first, scope="row"), *(_cell(value) for value in rest)) for first, *rest in rows
    )
    content = element("caption", caption), element("thead", head), element("tbody", *body)
    return element("div", element("table", *content, class_=kind), class_="scroll", tabindex=0)


def _cell(value: Any) -> Html:
    return value if isinstance(value, Html) and value.startswith("<td") else element("td", value)


def picture(image: np.ndarray, text: str, quality: int = LOSSLESS) -> Html:
    """An image H W 3 uint8 RGB inside the page; ``text`` describes it to those who do not see it."""
    _, data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    return element("img", src=source, alt=text, width=image.shape[1], height=image.shape[0], loading="lazy")
