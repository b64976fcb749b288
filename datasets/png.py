"""RGB PNG files of which only the first rows that are needed are decoded."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pyspng
from PIL import Image

START = b"\x89PNG\r\n\x1a\n\0\0\0\r"  # signature and length of the first chunk; its kind, W, H and RGB follow
RGB = bytes((8, 2, 0, 0, 0))  # bits a channel, colour type, compression, filters, not interlaced
HEADER = len(START) + 12 + len(RGB)  # bytes up to the first chunk's checksum
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # the limit of Pillow, which reads all other files, against attacks


class PngRows:
    """An RGB PNG whose checksums are correct: ``rows[:n]`` decodes only its first n rows, n W 3 uint8.

    Decoding is most of the cost of a training sample, and the rows below its crop are not needed: the header given to
    the decoder says that the picture has n rows. libspng is faster than Pillow but compares no checksums, so those of
    all chunks, also below row n, are compared here.

    Args:
        content: of a PNG file with three channels of 8 bits, not interlaced.

    Attributes:
        shape: (H, W, 3).

    Raises:
        ValueError: the file is truncated, a chunk is damaged, or the picture has more than ``MOST_PIXELS``.
    """

    def __init__(self, content: bytes, path: Path):
        self.path, self._rest = path, memoryview(content)[HEADER + 4 :]
        try:
            _check_chunks(content)
        except ValueError as error:
            raise undecodable(path, error) from error
        width, height = struct.unpack_from(">II", content, len(START) + 4)
        if width * height > MOST_PIXELS:  # a few bytes may decode to gigabytes
            raise ValueError(
                f"{path} is {height} x {width} (H x W); expected at most {MOST_PIXELS} pixels: cut it into tiles"
            )
        self.shape = (height, width, 3)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The rows.

        Raises:
            ValueError: the data cannot be decoded.
        """
        height, width, _ = self.shape
        header = struct.pack(">4sII", b"IHDR", width, max(1, rows.indices(height)[1])) + RGB
        checksum = struct.pack(">I", zlib.crc32(header))
        try:
            return pyspng.load(b"".join((START, header, checksum, self._rest)), "RGB")[rows]
        except RuntimeError as error:
            raise undecodable(self.path, error) from error


def open_rgb(path: Path) -> PngRows | None:
    """The rows of a file, or None where it is not a PNG with three channels of 8 bits or is interlaced.

    Raises:
        ValueError: the file cannot be read, is truncated or is damaged.
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
    """Checks all chunks up to the last.

    Raises:
        ValueError: a chunk is truncated or does not match its checksum.
    """
    view, at, kind = memoryview(content), 8, b""  # the signature has 8 bytes
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 > len(content):
            raise ValueError(f"cut off: the chunk at byte {at} goes beyond the file's {len(content)} bytes")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"damaged: the chunk at byte {at} does not match its checksum")
        kind, at = content[at + 4 : at + 8], end + 4
