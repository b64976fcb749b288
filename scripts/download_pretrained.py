"""Downloads published weights into pretrained/, under the names that the shipped configs use.

Without a name it prints the table of all weights. An interrupted download is resumed; the sha256 is checked where the
source publishes it.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
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


class Weights(NamedTuple):
    """One entry of the table.

    Attributes:
        name: on the command line.
        files: path below pretrained/ -> its URL; None where only a browser can download it.
        publisher: key of ``PUBLISHERS``.
        layout: its name in ``models.weights.layouts``.
        key: the config key that reads it.
        licence: in short; ``PUBLISHERS`` has more.
        megabytes: all files together (10^6 bytes), as the source states; None where it does not.
    """

    name: str
    files: dict[str, str | None]
    publisher: str
    layout: str
    key: str
    licence: str
    megabytes: float | None = None


# Their pages, and the licence terms there.
PUBLISHERS = {
    "torchvision": (
        "https://pytorch.org/vision/stable/models",
        "code BSD-3-Clause; weights may carry the terms of the data they were trained on (ImageNet, COCO)",
    ),
    "mmsegmentation": (
        "https://github.com/open-mmlab/mmsegmentation",
        "Apache-2.0, SegFormer under NVIDIA's licence (its LICENSES.md); the MiT encoders are converted from NVlabs'",
    ),
    "Hugging Face": (
        "https://huggingface.co/nvidia",
        "converted from NVlabs'; the model cards say `license: other`",
    ),
    "CIRKD": ("https://github.com/winycg/CIRKD", "the repository states no licence"),
    "NVlabs": (
        "https://github.com/NVlabs/SegFormer",
        "NVIDIA Source Code License for SegFormer: research or evaluation only; on Google Drive and OneDrive",
    ),
}
BSD, APACHE, NON_COMMERCIAL, UNSTATED = "BSD-3-Clause (code)", "Apache-2.0", "non-commercial", "not stated"
STUDENT, TEACHER = "student.pretrained", "teacher.weights"
RESNET = ("torchvision", "ImageNet ResNet (torchvision, timm)", STUDENT, BSD)
DEEP_RESNET = ("CIRKD", "ImageNet ResNet, deep stem (CIRKD)", STUDENT, UNSTATED)
VOC = ("torchvision", "torchvision DeepLabV3", TEACHER, BSD)
MMSEG_MIT = ("mmsegmentation", "ImageNet MiT (mmsegmentation)", STUDENT, NON_COMMERCIAL)
MMSEG_SEGFORMER = ("mmsegmentation", "mmsegmentation SegFormer", TEACHER, NON_COMMERCIAL)
MMSEG_DEEPLABV3 = ("mmsegmentation", "mmsegmentation DeepLabV3, deep stem", TEACHER, APACHE)
HF_MIT = ("Hugging Face", "ImageNet MiT (Hugging Face)", STUDENT, NON_COMMERCIAL)
HF_SEGFORMER = ("Hugging Face", "SegFormer (Hugging Face)", TEACHER, NON_COMMERCIAL)
CIRKD_MIT = ("CIRKD", "ImageNet MiT (NVlabs)", STUDENT, UNSTATED)
CIRKD_DEEPLABV3 = ("CIRKD", "CIRKD DeepLabV3, deep stem", TEACHER, UNSTATED)
CIRKD_SEGFORMER = ("CIRKD", "CIRKD SegFormer", TEACHER, UNSTATED)
NVLABS_MIT = ("NVlabs", "ImageNet MiT (NVlabs)", STUDENT, NON_COMMERCIAL)
NVLABS_SEGFORMER = ("NVlabs", "SegFormer (NVlabs)", TEACHER, NON_COMMERCIAL)

TORCH = "https://download.pytorch.org/models"
MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5"
CIRKD = "https://github.com/winycg/CIRKD/releases/download"


def _file(name: str, url: str | None, kind: tuple[str, ...], megabytes: float | None = None) -> Weights:
    return Weights(name, {f"{name}.pth": url}, *kind, megabytes)


def _hub(name: str, repository: str, kind: tuple[str, ...], megabytes: float) -> Weights:
    url = f"https://huggingface.co/nvidia/{repository}/resolve/main"
    files = ("config.json", "preprocessor_config.json", "pytorch_model.bin")
    return Weights(name, {f"{name}/{file}": f"{url}/{file}" for file in files}, *kind, megabytes)


def _run(head: str, run: str, file: str) -> str:
    return f"{MMSEG}/{head}/{run}/{run}_{file}.pth"


TABLE = (
    _file("resnet18", f"{TORCH}/resnet18-f37072fd.pth", RESNET, 46.8),
    _file("resnet101", f"{TORCH}/resnet101-63fe2227.pth", RESNET, 178.8),
    *(
        _file(f"mit_b{size}", f"{MMSEG}/pretrain/segformer/mit_b{size}_20220624-{digits}.pth", MMSEG_MIT)
        for size, digits in enumerate(("7e0fe6dd", "02e5a6a1", "66e8bf70", "13b1141c", "d588d980", "658746d9"))
    ),
    *(
        _hub(f"mit_b{size}_hf", f"mit-b{size}", HF_MIT, megabytes)
        for size, megabytes in enumerate((14.4, 54.7, 99, 179, 246, 328))
    ),
    *(_file(f"mit_b{size}_cirkd", f"{CIRKD}/backbonev0.1/mit_b{size}.pth", CIRKD_MIT) for size in (0, 4)),
    Weights("mit_nvlabs", {f"mit_nvlabs/mit_b{size}.pth": None for size in range(6)}, *NVLABS_MIT),
    _file("resnet18s_cirkd", f"{CIRKD}/backbonev0.1/resnet18-imagenet.pth", DEEP_RESNET),
    _file("resnet101s_cirkd", None, DEEP_RESNET),
    _file("deeplabv3_r50_voc", f"{TORCH}/deeplabv3_resnet50_coco-cd0a2569.pth", VOC, 168.3),
    _file("deeplabv3_r101_voc", f"{TORCH}/deeplabv3_resnet101_coco-586e9e4e.pth", VOC, 244.5),
    *(
        _file(
            f"deeplabv3_r{depth}_cityscapes_mmseg",
            _run("deeplabv3", f"deeplabv3_r{depth}-d8_512x1024_80k_cityscapes", file),
            MMSEG_DEEPLABV3,
        )
        for depth, file in ((18, "20201225_021506-23dffbe2"), (101, "20200606_113503-9e428899"))
    ),
    *(
        _file(f"deeplabv3_r{depth}_cityscapes_cirkd", f"{CIRKD}/segv0.1/{file}_citys_best_model.pth", CIRKD_DEEPLABV3)
        for depth, file in ((18, "kd_deeplabv3_resnet18"), (101, "deeplabv3_resnet101"))
    ),
    *(
        _hub(
            f"segformer_b{size}_cityscapes_hf",
            f"segformer-b{size}-finetuned-cityscapes-1024-1024",
            HF_SEGFORMER,
            megabytes,
        )
        for size, megabytes in enumerate((15, 54.8, 110, 189, 256, 339))
    ),
    *(
        _file(
            f"segformer_b{size}_cityscapes_mmseg",
            _run("segformer", f"segformer_mit-b{size}_8x1_1024x1024_160k_cityscapes", file),
            MMSEG_SEGFORMER,
        )
        for size, file in enumerate(
            (
                "20211208_101857-e7f88502",
                "20211208_064213-655c7b3f",
                "20211207_134205-6096669a",
                "20211206_224823-a8f8a177",
                "20211207_080709-07f6c333",
                "20211206_072934-87a052ec",
            )
        )
    ),
    *(
        _file(f"segformer_b{size}_cityscapes_cirkd", f"{CIRKD}/segv0.1/{file}_citys_best_model.pth", CIRKD_SEGFORMER)
        for size, file in ((0, "kd_segformer_MiT_B4_segformer_MiT_B0"), (4, "segformer_MiT_B4"))
    ),
    Weights("segformer_nvlabs", {f"segformer_nvlabs/b{size}.pth": None for size in range(6)}, *NVLABS_SEGFORMER),
)


class DownloadError(Exception):
    """No file was stored; the message says why and what to do."""


def published_digits(url: str) -> str:
    """First digits of a file's sha256 where its name ends in them, as torchvision's and OpenMMLab's do, or ''."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", url)
    return found[1] if found else ""


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def markdown() -> str:
    """The table of weights and the list of publishers, as in pretrained/README.md."""
    rows = [("name", "in pretrained/", "MB", "sha256", "licence", "published by", "layout", "config key")]
    for weights in TABLE:
        (path, url), *others = weights.files.items()
        path = f"{weights.name}/" if others else path
        if url is None:
            sha256 = "by hand"
        elif weights.publisher == "Hugging Face":
            sha256 = "by the server"
        else:
            sha256 = published_digits(url) or UNSTATED
        size = UNSTATED if weights.megabytes is None else f"{weights.megabytes:g}"
        facts = (weights.licence, weights.publisher, weights.layout, weights.key)
        rows.append((weights.name, path, size, sha256, *facts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    publishers = [f"- {name}, <{page}>: {terms}" for name, (page, terms) in PUBLISHERS.items()]
    return "\n".join([*(f"| {line} |" for line in lines), "", *publishers]) + "\n"


def find(names: Iterable[str]) -> list[Weights]:
    """Entries of the table by name.

    Raises:
        DownloadError: no entry has such a name, or only a browser can download it.
    """
    table = {weights.name: weights for weights in TABLE}
    for name in names:
        if name not in table:
            nearest = ", ".join(get_close_matches(name, table)) or "none"
            raise DownloadError(f"unknown name {name!r}; nearest: {nearest}. Call it without a name for the table")
        if None in table[name].files.values():
            files = ", ".join(f"pretrained/{file}" for file in table[name].files)
            raise DownloadError(
                f"{name} has no direct link.\nBy hand: open its page {PUBLISHERS[table[name].publisher][0]} in a "
                f"browser, follow the links to it, and save as {files}"
            )
    return [table[name] for name in names]


def by_hand(url: str, part: Path, page: str) -> str:
    """How to download the file of ``url`` without this script."""
    path, digits = part.with_suffix(""), published_digits(url)
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


def fetch(url: str, part: Path, page: str) -> str:
    """Downloads ``url`` into ``part``, and resumes where ``part`` already has a beginning of it.

    Args:
        url: of the file.
        part: the unfinished file: its final path followed by ``.part``.
        page: where a browser finds the file.

    Returns:
        The sha256 that the server states, or ''.

    Raises:
        DownloadError: the server cannot be reached, has no such file, sends a web page or stops early; or the file
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
            return fetch(url, part, page)
        raise DownloadError(f"{url}: HTTP {error.code} ({error.reason}).\n{by_hand(url, part, page)}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url} cannot be reached ({reason}): is this machine offline?\n{by_hand(url, part, url)}"
        ) from error

    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url} is a web page, not a file.\n{by_hand(url, part, page)}")
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
            raise DownloadError(f"{url} -> {part}: {error}. Run the same command again to resume") from error
    if total is not None and (got := part.stat().st_size) != total:
        raise DownloadError(f"{url}: {got} of {total} bytes arrived. Run the same command again to resume {part}")
    return redirects.sha256


def download(url: str, path: Path, page: str) -> str:
    """Downloads ``url`` to ``path``, unless it exists; returns a message of what was done.

    Raises:
        DownloadError: as :func:`fetch`; or the sha256 of the downloaded or existing file is not the published one.
    """
    digits = published_digits(url)
    if path.exists():
        if not digits:
            return f"{path}: exists, not checked (its link has no sha256); delete it to download it again"
        found = sha256_of(path)
        if found.startswith(digits):
            return f"{path}: exists, sha256 as published"
        raise DownloadError(
            f"{path} is another file: its sha256 is {found}, that of {url} begins with {digits}. It was not changed: "
            f"move or delete it, or give another folder with --out"
        )
    print(f"{url}\n  -> {path}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    digits = fetch(url, part, page) or digits
    found = sha256_of(part)
    if not found.startswith(digits):
        part.unlink()
        raise DownloadError(
            f"{url}: sha256 {found}, but the published one begins with {digits}: damaged in transfer, or replaced at "
            f"the source. It was deleted; run again, and if the same happens, do not use it"
        )
    os.replace(part, path)
    return f"  {path.stat().st_size / 1e6:.1f} MB, sha256 {found} ({'as published' if digits else 'none is published'})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "download_pretrained.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="entries of the table; without any, the table is printed"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: the repository's pretrained/")
    args = parser.parse_args(arguments)
    if not args.names:
        print(markdown(), end="")
        return
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; expected a folder (it is created if missing)")
    try:
        for weights in find(args.names):
            for file, url in weights.files.items():
                print(download(url, args.out / file, PUBLISHERS[weights.publisher][0]), flush=True)
    except (DownloadError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the part is kept; run the same command again to resume")


if __name__ == "__main__":
    main()
