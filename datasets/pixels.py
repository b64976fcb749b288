"""One image or label file -> its pixels, exactly as stated, or an error that says how to get them right."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.png import PngRows, open_rgb, undecodable

RGB_MODES = ("RGB", "L", "P", "RGBA", "LA", "1")  # Pillow's pixel formats that become RGB without loss
LOSSLESS = ("zip", "raw", "gif", "libtiff")  # Pillow's decoders; a TIFF may hold JPEG
ARRAYS = (".npy", ".npz", ".mat")
STRETCHED = {"L;2": 85, "L;4": 17}  # grey of 2 and 4 bits, which Pillow multiplies to fill 0..255


def open_image(path: Path, image_range: tuple[float, float] | None = None) -> np.ndarray | PngRows:
    """An image as H W 3 uint8 RGB, or as rows that are decoded only as far down as ``[:n]`` asks for.

    Transparency is left out. An EXIF rotation is not applied, since labels know of none.

    Args:
        image_range: (low, high), for images of 16 bits a channel alone: a value v becomes
            round(255 (v - low) / (high - low)), and what is below low or above high becomes 0 or 255.

    Raises:
        ValueError: the file cannot be decoded in full, has another pixel format, or 16 bits without ``image_range``.
    """
    rows = open_rgb(path)
    if rows is not None:
        return rows
    picture, layout, _ = _decode(path)
    if ";16" in layout or picture.mode.startswith("I;16"):
        return _from_16_bits(path, image_range)
    if picture.mode not in RGB_MODES:
        raise ValueError(
            f"{path} has pixel format {picture.mode!r}; expected RGB, grey or a palette: "
            + {
                "CMYK": "it has printing colours; save it as RGB with an image editor, which knows its colour profile",
                "I": "it has 32 bits a pixel; write it anew as 16-bit PNG and set data.image_range=(low, high)",
                "F": "it holds fractions; scale them to 0..255 yourself and write an 8-bit PNG",
            }.get(picture.mode, "save it as an RGB PNG")
        )
    return np.array(picture.convert("RGB"))


def read_ids(path: Path) -> np.ndarray:
    """The numbers in a label file as they were written: H W uint8 or uint16 ids, or H W 3 uint8 colours.

    Grey of 1, 2, 4, 8 or 16 bits gives its values; a palette gives its indices (its colours are for the eye).

    Raises:
        ValueError: the file cannot be decoded in full, is compressed with loss, or holds no whole numbers.
    """
    picture, layout, lossless = _decode(path)
    if not lossless:
        raise ValueError(
            f"{path} does not store ids exactly: it is compressed with loss, or its values are stretched when they are "
            "read; save the original as PNG (converting this file does not bring its ids back)"
        )
    if picture.mode in ("L", "P"):
        return np.array(picture) // np.uint8(STRETCHED.get(layout, 1))
    if picture.mode == "1":
        return np.array(picture).astype(np.uint8)
    if picture.mode.startswith("I;16"):
        return np.array(picture).astype(np.uint16)
    if picture.mode in ("RGB", "RGBA") and ";16" not in layout:
        return np.array(picture.convert("RGB"))
    raise ValueError(
        f"{path} has pixel format {picture.mode!r}{f' ({layout})' if ';16' in layout else ''}; expected ids in grey of "
        "up to 16 bits or in a palette, or colours in 8-bit RGB: write it anew from its source"
    )


def _decode(path: Path) -> tuple[Image.Image, str, bool]:
    """The whole picture, how its file lays out a pixel, and whether its compression keeps every value.

    Pillow rather than OpenCV: it refuses a file that is cut off, where OpenCV fills the rest of a JPEG with grey, and
    it gives the indices of a palette PNG, where OpenCV gives their colours.
    """
    if path.suffix.lower() in ARRAYS:
        raise ValueError(
            f"{path} is a file of arrays; expected an image: in Python, "
            "PIL.Image.fromarray(array.astype('uint8')).save('NAME.png') writes one (uint16 for ids above 255)"
        )
    try:
        with Image.open(path) as picture:
            codec, arguments = (picture.tile[0].codec_name, picture.tile[0].args) if picture.tile else ("", ())
            lossless = codec in LOSSLESS and picture.info.get("compression") not in ("jpeg", "webp")
            picture.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}); cut it into tiles") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... by format and by kind of damage
        raise undecodable(path, error) from error
    layout = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
    return picture, layout, lossless


def _from_16_bits(path: Path, image_range: tuple[float, float] | None) -> np.ndarray:
    """Grey or colour of 16 bits a channel -> H W 3 uint8 RGB. Pillow has found the file whole."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16:
        raise ValueError(f"{path} has 16 bits a channel in a form that cannot be read; write it anew as 16-bit PNG")
    if image_range is None:
        low, high = int(stored.min()), int(stored.max())
        guess = 2 ** max(8, high.bit_length()) - 1
        raise ValueError(
            f"{path} has 16 bits a channel, with values {low}..{high}, and nothing says which are black and white: set "
            f"data.image_range=(0, {guess}) if {guess} is white in all images (converting the files to 8 bits would "
            "cut values off)"
        )
    low, high = image_range
    levels = np.rint(255 * (np.arange(2**16) - low) / (high - low)).clip(0, 255).astype(np.uint8)[stored]
    if levels.ndim == 2:
        return np.repeat(levels[..., None], 3, axis=2)
    return np.ascontiguousarray(levels[..., 2::-1])  # OpenCV gives blue first, and transparency last
