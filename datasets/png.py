"""RGB PNG files whose rows are decoded from the top, only as far down as they are asked for."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pyspng
from PIL import Image

START = b"\x89PNG\r\n\x1a\n\0\0\0\r"  # the signature, and the length of the first chunk: its kind, W, H and RGB follow
RGB = bytes((8, 2, 0, 0, 0))  # bits a channel, colour type, compression, filters, not interlaced
HEADER = len(START) + 12 + len(RGB)  # bytes up to the first chunk's checksum
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow, which reads all other files, suspects an attack and refuses


class PngRows:
    """An RGB PNG, found undamaged: ``rows[:n]`` decodes its first n rows, n W 3 uint8, and nothing below them.

    Decoding is most of what a training sample costs, and need not go on below the last row of its crop: the decoder is
    told that the picture is n rows high. libspng undoes the row filters by vector instructions, which Pillow does not,
    but compares no checksum; so those of all chunks are compared here, also below row n.

    Args:
        content: of a file of three channels of 8 bits, not interlaced.
        path: named in errors.

    Attributes:
        shape: (H, W, 3).

    Raises:
        ValueError: the file is cut off, a chunk is damaged, or the picture has more than ``MOST_PIXELS``.
    """

    def __init__(self, content: bytes, path: Path):
        self.path, self._rest = path, memoryview(content)[HEADER + 4 :]
        try:
            _check_chunks(content)
        except ValueError as error:
            raise undecodable(path, error) from error
        width, height = struct.unpack_from(">II", content, len(START) + 4)
        if width * height > MOST_PIXELS:  # a few bytes may unpack to gigabytes
            raise ValueError(f"{path} is {height} x {width} (H x W); expected at most {MOST_PIXELS} pixels: cut it up")
        self.shape = (height, width, 3)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The rows.

        Raises:
            ValueError: the data do not decode.
        """
        height, width, _ = self.shape
        header = struct.pack(">4sII", b"IHDR", width, max(1, rows.indices(height)[1])) + RGB
        checksum = struct.pack(">I", zlib.crc32(header))
        try:
            return pyspng.load(b"".join((START, header, checksum, self._rest)), "RGB")[rows]
        except RuntimeError as error:
            raise undecodable(self.path, error) from error


def open_rgb(path: Path) -> PngRows | None:
    """The file's rows, or None where it is no PNG of three channels of 8 bits, or is interlaced.

    Raises:
        ValueError: the file cannot be read, is cut off or is damaged.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER)
            if not (start.startswith(START + b"IHDR") and start.endswith(RGB)):
                return None
            return PngRows(start + file.read(), path)
    except OSError as error:
        raise undecodable(path, error) from error


def undecodable(path: Path, error: Exception) -> ValueError:
    reason = "it is empty: 0 bytes" if path.is_file() and not path.stat().st_size else error
    return ValueError(f"{path} cannot be decoded ({reason}); replace it by an undamaged copy")


def _check_chunks(content: bytes) -> None:
    """Goes through all chunks up to the last.

    Raises:
        ValueError: one is cut off or does not match its checksum.
    """
    view, at, kind = memoryview(content), 8, b""  # the signature has 8 bytes
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 > len(content):
            raise ValueError(f"cut off: the chunk at byte {at} goes beyond the file's {len(content)} bytes")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"damaged: the chunk at byte {at} does not match its checksum")
        kind, at = content[at + 4 : at + 8], end + 4
