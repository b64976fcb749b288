"""The decoder of RGB PNG files against Pillow's, on sound files of every kind and on damaged ones."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.png import PngRows, open_rgb

HERE = Path("picture.png")


def picture(height=37, width=53) -> np.ndarray:
    """Noise over a ramp: every row filter is worth its while somewhere."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(height), 3 * np.arange(width))[..., None] * (1, 2, 3)
    return ((ramp + rng.integers(0, 9, (height, width, 3))) % 256).astype(np.uint8)


def encoded(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "png", **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_data(data: bytes) -> bytes:
    """A file of 37 x 53 whose compressed data are these, every checksum right."""
    header = struct.pack(">IIBBBBB", 53, 37, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def scanlines(rows: int) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in picture()[:rows])


@pytest.mark.parametrize("filters", [8, 16, 32, 64, 128, 248])  # of libpng: none, sub, up, average, Paeth, whichever
def test_rows_are_those_of_the_picture_under_every_filter(filters):
    image = picture()
    _, content = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_FILTER, filters])
    rows = PngRows(content.tobytes(), HERE)
    assert rows.shape == image.shape
    for count in (1, 2, 20, 36, 37, 99):
        assert (rows[:count] == image[:count]).all()
    assert (rows[:] == image).all()
    assert (rows[5:9] == image[5:9]).all()
    assert rows[:].dtype == np.uint8


def test_a_file_is_read_as_pillow_reads_it(tmp_path):
    """Whatever else the file says: transparency, gamma, text."""
    options = {"transparency": (1, 2, 3), "gamma": 0.1, "dpi": (30, 30), "icc_profile": b"profile"}
    path = tmp_path / "x.png"
    path.write_bytes(encoded(**options))
    assert (open_rgb(path)[:] == np.array(Image.open(path).convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16"])
def test_other_pixel_formats_are_left_to_pillow(tmp_path, mode):
    image = Image.fromarray(np.zeros((4, 6), np.uint16)) if mode == "I;16" else Image.new(mode, (6, 4))
    image.save(tmp_path / "x.png")
    assert open_rgb(tmp_path / "x.png") is None


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"\xff\xd8\xff\xe0 no PNG of any kind whatever"])
def test_other_files_are_left_to_pillow(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    assert open_rgb(tmp_path / "x.png") is None


def test_an_interlaced_file_is_left_to_pillow(tmp_path):
    content = bytearray(encoded())
    content[28] = 1
    (tmp_path / "x.png").write_bytes(content)
    assert open_rgb(tmp_path / "x.png") is None


def test_a_file_cut_off_anywhere_is_refused():
    content = encoded()
    for length in (29, 33, 40, len(content) // 2, len(content) - 12, len(content) - 1):
        with pytest.raises(ValueError, match=r"picture.png cannot be decoded \(cut off: .*undamaged copy"):
            PngRows(content[:length], HERE)


def test_a_flipped_bit_anywhere_is_refused():
    """Also far below the rows that will be asked for."""
    content = encoded()
    for at in range(29, len(content), 97):
        damaged = bytearray(content)
        damaged[at] ^= 4
        with pytest.raises(ValueError, match=r"picture.png cannot be decoded"):
            PngRows(bytes(damaged), HERE)


def test_data_that_end_early_are_refused_where_rows_are_missing():
    rows = PngRows(with_data(zlib.compress(scanlines(20))), HERE)
    assert (rows[:20] == picture()[:20]).all()
    with pytest.raises(ValueError, match=r"picture.png cannot be decoded"):
        rows[:21]


@pytest.mark.parametrize("data", [b"", b"no zlib stream", zlib.compress(b"\x09" + scanlines(37)[1:])])
def test_data_that_are_no_picture_are_refused(data):
    with pytest.raises(ValueError, match=r"picture.png cannot be decoded"):
        PngRows(with_data(data), HERE)[:]


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.png cannot be decoded.*No such file"):
        open_rgb(tmp_path / "gone.png")


def test_a_bomb_is_refused_before_it_is_unpacked():
    """30000 x 30000 pixels would be 2.5 GiB, however small the file; the header is believed first."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"small") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"picture.png is 30000 x 30000 \(H x W\); expected at most 178956970 pixels"):
        PngRows(content, HERE)


def test_more_data_than_the_picture_has_are_not_unpacked():
    assert (PngRows(with_data(zlib.compress(scanlines(37) + bytes(2**26))), HERE)[:] == picture()).all()
