import struct
import zlib

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image

from datasets.pixels import open_image, read_ids


def png(path, bits, colour_type, size, rows):
    """A PNG written by hand: size (H, W), rows of packed bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", size[1], size[0], bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("bits", "row", "ids"),
    [
        (1, bytes([0b01100000]), [0, 1, 1, 0]),
        (2, bytes([0b00011011]), [0, 1, 2, 3]),
        (4, bytes([0x01, 0xEF]), [0, 1, 14, 15]),
        (8, bytes([0, 1, 200, 255]), [0, 1, 200, 255]),
        (16, struct.pack(">4H", 0, 1, 300, 65535), [0, 1, 300, 65535]),
    ],
)
def test_grey_labels_of_any_depth_give_the_numbers_in_the_file(tmp_path, bits, row, ids):
    assert read_ids(png(tmp_path / "label.png", bits, 0, (1, 4), [row])).tolist() == [ids]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
def test_a_palette_gives_its_indices(tmp_path, suffix):
    picture = Image.fromarray(np.array([[0, 3, 2]], np.uint8), "P")
    picture.putpalette([0, 0, 0, 9, 9, 9, 128, 0, 0, 255, 0, 0])
    picture.save(tmp_path / f"label.{suffix}")
    if suffix != "gif":  # Pillow renumbers a GIF's palette as it writes it
        assert read_ids(tmp_path / f"label.{suffix}").tolist() == [[0, 3, 2]]


def test_colours_of_a_label_come_as_they_are(tmp_path):
    colours = np.array([[[128, 0, 0], [0, 64, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "label.png")
    assert (read_ids(tmp_path / "label.png") == colours).all()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: Image.new("L", (8, 8), 3).save(path, "jpeg"),
            "does not store ids exactly: it is compressed with loss.*save the original",
        ),
        (lambda path: Image.new("F", (8, 8)).save(path, "tiff"), "pixel format 'F'.*write it anew from its source"),
        (lambda path: path.write_bytes(b""), "is empty: 0 bytes"),
        (lambda path: np.save(path.open("wb"), np.zeros((4, 4))), "cannot be decoded"),
    ],
)
def test_labels_whose_numbers_are_lost_are_refused(tmp_path, write, message):
    write(tmp_path / "label.png")
    with pytest.raises(ValueError, match=rf"label\.png .*{message}"):
        read_ids(tmp_path / "label.png")


def test_images_become_rgb(tmp_path):
    grey = np.array([[0, 7, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (open_image(tmp_path / "grey.png")[:] == grey[..., None]).all()
    Image.fromarray(grey > 9).save(tmp_path / "one.png")
    assert open_image(tmp_path / "one.png")[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_read_by_the_stated_rule(tmp_path, suffix):
    grey, colour = tmp_path / f"grey.{suffix}", tmp_path / f"colour.{suffix}"
    values = np.array([[0, 1000, 3000, 4095, 60000]], np.uint16)
    cv2.imwrite(str(grey), values)
    cv2.imwrite(str(colour), np.stack([values * 0, values * 0, values], -1))  # red, since OpenCV writes blue first
    # 255 (v - 1000) / 2000: below 0 is 0, above 255 is 255.
    expected = [0, 0, 255, 255, 255]
    assert open_image(grey, (1000, 3000))[0, :, 1].tolist() == expected
    assert open_image(colour, (1000, 3000))[0, :, 0].tolist() == expected
    assert open_image(colour, (1000, 3000))[0, :, 1:].max() == 0
    assert open_image(grey, (0, 4095))[0, 1].tolist() == [62, 62, 62]  # 62.27


def test_16_bits_without_a_rule_are_refused_with_the_values_found(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4, 3), 3000, np.uint16))
    with pytest.raises(ValueError, match=r"a\.png has 16 bits a channel, with values 3000\.\.3000.*\(0, 4095\)"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize(("mode", "message"), [("CMYK", "printing colours"), ("I", "32 bits"), ("F", "fractions")])
def test_other_images_are_refused_with_advice_for_their_format(tmp_path, mode, message):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif has pixel format '{mode}'.*{message}"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [open_image, read_ids])
def test_a_file_of_arrays_is_refused_with_the_line_that_makes_it_an_image(tmp_path, read):
    ids = np.array([[0, 7, 255]])
    np.save(tmp_path / "label.npy", ids)
    with pytest.raises(ValueError, match=r"label\.npy is a file of arrays; expected an image") as error:
        read(tmp_path / "label.npy")
    line = "PIL.Image.fromarray(array.astype('uint8')).save('NAME.png')"
    assert line in str(error.value)
    exec(line.replace("NAME", str(tmp_path / "label")), {"PIL": PIL, "array": ids})
    assert read_ids(tmp_path / "label.png").tolist() == ids.tolist()


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("RGB", "png"), ("RGB", "tif")])
@pytest.mark.parametrize("read", [open_image, read_ids])
def test_a_picture_beyond_the_size_limit_is_refused_with_what_to_do(tmp_path, monkeypatch, mode, suffix, read):
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (8, 8)).save(path)
    read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)  # for Pillow, more than twice as many are an error
    monkeypatch.setattr("datasets.png.MOST_PIXELS", 63)
    with pytest.raises(ValueError, match=rf"{path} is (too large|8 x 8) .*cut it into tiles"):
        read(path)[:]
