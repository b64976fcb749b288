"""Downloads published weights into pretrained/, under the names that the shipped configs use.

Without a name, it prints the table of all weights (pretrained/README.md). An interrupted download is resumed;
the sha256 is checked if the source publishes it.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from scripts._command import command_parser, one_line_errors
from utils.names import unknown_name

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
PAGE = FOLDER / "README.md"
EXAMPLES = """\
examples:
  python scripts/download_pretrained.py
      prints the table: names, sizes, licences, layouts
  python scripts/download_pretrained.py resnet18 mit_b0
      the encoders of the student configs: pretrained/resnet18.pth and pretrained/mit_b0.pth
  python scripts/download_pretrained.py segformer_b4_cityscapes_hf --out /data/weights
"""
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20  # bytes
HUB_FILES = ("config.json", "preprocessor_config.json", "pytorch_model.bin")  # of a network of Hugging Face
LINK = re.compile(r"\[(.+)\]\((.+)\)")


class Weights(NamedTuple):
    """A row of the table, whose cells are text."""

    name: str
    place: str  # file below pretrained/, or a folder, which ends in /
    megabytes: str  # all files together (10^6 bytes), as the source states
    sha256: str  # its first digits, or why there are none
    licence: str
    publisher: str  # one of ``read_publishers``
    layout: str  # its name in ``models.weights.layouts``
    key: str  # the config key that reads it
    link: str  # a ``LINK`` to the file or a repository of Hugging Face; else only a browser can download it

    @property
    def files(self) -> dict[str, str]:
        """Path below pretrained/ -> its URL; empty where only a browser can download them."""
        link = LINK.fullmatch(self.link)
        if link is None:
            return {}
        if self.place.endswith("/"):
            return {f"{self.place}{file}": f"{link[2]}/resolve/main/{file}" for file in HUB_FILES}
        return {self.place: link[2]}

    @property
    def digits(self) -> str:
        """The first digits of the file's sha256, or ''."""
        return self.sha256 if re.fullmatch("[0-9a-f]{8}", self.sha256) else ""


def read_section() -> str:
    """The table of published weights, and the list of publishers, from the page."""
    return re.search(r"^\| name .*?(?=\n\n[^-])", PAGE.read_text(encoding="utf-8"), re.M | re.S)[0]


def read_table() -> dict[str, Weights]:
    """The rows of the table by name."""
    rows = [line for line in read_section().splitlines() if line.startswith("|")][2:]
    table = [Weights(*(cell.strip() for cell in row.strip("|").split("|"))) for row in rows]
    return {weights.name: weights for weights in table}


def read_publishers() -> dict[str, str]:
    """The address of each publisher's page."""
    return dict(re.findall(r"^- (.+?), <(.+?)>:", read_section(), re.M))


def find(names: Iterable[str]) -> list[Weights]:
    """Rows of the table by name.

    Raises:
        ValueError: no row has such a name, or only a browser can download it.
    """
    table = read_table()
    for name in names:
        if name not in table:
            raise unknown_name("name", name, table)
        if not table[name].files:
            raise ValueError(
                f"{name} has no direct link.\nBy hand: open its page {read_publishers()[table[name].publisher]} in a "
                f"browser, follow the links to it, and save as pretrained/{table[name].place}"
            )
    return [table[name] for name in names]


def by_hand(part: Path, digits: str, page: str) -> str:
    """How to download a file without this script."""
    path = part.with_suffix("")
    check = f", and check that `sha256sum {path}` begins with {digits}" if digits else ""
    return f"By hand: open {page} in a browser on any machine, save the file as {path}{check}"


class _Redirects(HTTPRedirectHandler):
    """Follows redirects and keeps the sha256 of the file, which Hugging Face states in its redirect."""

    sha256 = ""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        stated = headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", stated):
            self.sha256 = stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, part: Path, digits: str, page: str) -> str:
    """Downloads ``url`` into ``part``, and resumes where ``part`` already has a beginning of it.

    ``part`` is the final path and ``.part``, ``digits`` are the first ones of the sha256 or empty, and a browser finds
    the file on ``page``. Returns the sha256 that the server states, or ''.

    Raises:
        ValueError: the server cannot be reached, has no such file, sends a web page or stops early; or the file
            cannot be written.
    """
    have = part.stat().st_size if part.is_file() else 0
    redirects = _Redirects()
    headers = {"User-Agent": "hmkd"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = build_opener(redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:  # the server has nothing beyond the part
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return redirects.sha256
            print(f"{part} is longer than {url}; starting again", flush=True)
            part.unlink()
            return fetch(url, part, digits, page)
        raise ValueError(f"{url}: HTTP {error.code} ({error.reason}).\n{by_hand(part, digits, page)}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"{url} cannot be reached ({reason}): is this machine offline?\n{by_hand(part, digits, url)}"
        ) from error

    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{url} is a web page, not a file.\n{by_hand(part, digits, page)}")
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            print("  the server cannot resume; starting again", flush=True)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        try:
            with (
                open(part, "ab" if have else "wb") as file,
                tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
            ):
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        except (OSError, HTTPException) as error:  # of the network and of the disk alike
            raise ValueError(f"{url} -> {part}: {error}. Run the same command again to resume") from error
    if total is not None and (got := part.stat().st_size) != total:
        raise ValueError(f"{url}: {got} of {total} bytes arrived. Run the same command again to resume {part}")
    return redirects.sha256


def download(url: str, path: Path, digits: str, page: str) -> str:
    """Downloads ``url`` to ``path``, unless it exists; returns a message of what was done. Arguments as :func:`fetch`.

    Raises:
        ValueError: as :func:`fetch`; or the sha256 of the downloaded or existing file is not the published one.
    """
    if path.exists():
        if not digits:
            return f"{path}: exists, not checked (its link has no sha256); delete it to download it again"
        found = sha256_of(path)
        if found.startswith(digits):
            return f"{path}: exists, sha256 as published"
        raise ValueError(
            f"{path} is another file: its sha256 is {found}, that of {url} begins with {digits}. It was not changed: "
            f"move or delete it, or give another folder with --out"
        )
    print(f"{url}\n  -> {path}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    digits = fetch(url, part, digits, page) or digits
    found = sha256_of(part)
    if not found.startswith(digits):
        part.unlink()
        raise ValueError(
            f"{url}: sha256 {found}, but the published one begins with {digits}: damaged in transfer, or replaced at "
            f"the source. It was deleted; run again, and if the same happens, do not use it"
        )
    os.replace(part, path)
    return f"  {path.stat().st_size / 1e6:.1f} MB, sha256 {found} ({'as published' if digits else 'none is published'})"


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="entries of the table; without a name, the table is printed"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: the repository's pretrained/")
    args = parser.parse_args(arguments)
    if not args.names:
        print(LINK.sub(r"\1", read_section()))
        return
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; expected a folder (it is created if missing)")
    with one_line_errors("\ninterrupted: the part is kept; run the same command again to resume"):
        for weights in find(args.names):
            for file, url in weights.files.items():
                print(download(url, args.out / file, weights.digits, read_publishers()[weights.publisher]), flush=True)


if __name__ == "__main__":
    main()
