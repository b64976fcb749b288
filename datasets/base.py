"""Images with labels, read from list files."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.ids import Color, check_classes, check_colors, id_table, map_colors, map_ids, raw_ids
from datasets.pixels import open_image, read_ids
from datasets.png import PngRows
from utils.names import VOID, Registry


def read_list(root: str | Path, list_file: str | Path) -> list[tuple[str, str | None]]:
    """Reads ``image label`` pairs, one a line, both relative to ``root``; or finds images by a pattern.

    A ``list_file`` with ``*`` is such a pattern under ``root``, for example ``'video/**/*.jpg'``: each file that it
    matches, in order of name, is an image without a label.

    Blank lines are ignored. A line without a label (a test set with secret labels) gives ``(image, None)``. Fields are
    separated by white space, or by one tab where a name contains spaces. The text is UTF-8, with or without a byte
    order mark. Links under ``root`` may lead anywhere.

    Raises:
        FileNotFoundError: ``root`` or the list is missing, or the pattern matches no file.
        ValueError: the list is not UTF-8 text, a line has more than two fields, a path is absolute or leads out of
            ``root``, or the list is empty.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data root {root} is not a folder; put or link the data set there, or set data.root "
            "(scripts/quickstart.sh makes the data of the demo)"
        )
    if "*" in str(list_file):
        images = sorted(path.relative_to(root).as_posix() for path in root.glob(str(list_file)) if path.is_file())
        if not images:
            raise FileNotFoundError(f"no file under {root} matches {str(list_file)!r}; expected images")
        return [(image, None) for image in images]
    path = root / list_file
    if not path.is_file():
        raise FileNotFoundError(
            f"list file {path} is missing; python scripts/prepare_lists.py writes it for published data sets"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"list file {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"list file {path} has a NUL byte, so it is not text or is damaged; write it again")
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = [field.strip() for field in line.split("\t")] if "\t" in line.strip() else line.split()
        if not fields:
            continue
        if len(fields) > 2 or not all(fields):
            raise ValueError(
                f"{path}:{number}: {len(fields)} fields in {line!r}; expected 'image label'; "
                "where a name has spaces, separate the two names by one tab"
            )
        for name in fields:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(
                    f"{path}:{number}: {name!r} leads out of the data root; expected a path inside "
                    f"{root} (python scripts/prepare_lists.py rewrites the lists of CamVid that SegNet published)"
                )
        pairs.append((fields[0], fields[1] if len(fields) == 2 else None))
    if not pairs:
        raise ValueError(f"list file {path} is empty; expected one 'image label' a line")
    return pairs


def read_table(name: str) -> list[tuple[int, Color, str]]:
    """The id in a label file, RGB colour and name of each class, from the lines of ``datasets/classes/NAME.txt``."""
    lines = (Path(__file__).parent / f"classes/{name}.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(maxsplit=4) for line in lines if not line.startswith("#")]
    return [(int(raw), (int(red), int(green), int(blue)), title) for raw, red, green, blue, title in rows]


def read_classes(name: str) -> tuple[list[str], list[Color], dict[int, int]]:
    """The classes of a published data set in train id order: names, RGB colours, id in a label file -> train id."""
    ids, colors, names = zip(*read_table(name), strict=True)
    return list(names), list(colors), {raw: train for train, raw in enumerate(ids)}


class SegDataset(Dataset):
    """Images with one class a pixel, from a list file.

    Args:
        root: folder of the data set.
        list_file: list of ``image label`` lines (see ``read_list``), relative to ``root`` or absolute.
        class_names: K names, in train id order.
        palette: K RGB colours.
        ids: raw id (the value in a label file) -> train id in 0..K-1, or 255 for void. All other values are errors.
        colors: (r, g, b) in a label file -> train id. All other colours are errors. None: labels in colour are errors.

    Attributes:
        num_classes: K.
        palette: K x 3 uint8 RGB.
        id_table: 256 or 65536 uint8, raw id -> train id; 255 is void, 254 marks a raw id that is an error.
        image_range: (low, high), the values that are black and white in images with 16 bits a channel; None: such
            images are errors. ``build_dataset`` sets it.
        files: the (image, label or None) paths of each sample.
        names: a unique name of each sample, for prediction files: without folder and suffix where that is unique.

    Raises:
        FileNotFoundError: the root or the list is missing.
        ValueError: the list is malformed, two samples have the same name, or the tables do not fit together.
    """

    image_range: tuple[float, float] | None = None

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]],
        ids: Mapping[int, int],
        colors: Mapping[Color, int] | None = None,
    ):
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        check_classes(self.class_names)
        self.palette = _palette(palette, self.num_classes)
        self.id_table, self._raw_ids = id_table(ids, self.num_classes), raw_ids(ids)
        self.colors = colors
        if colors is not None:
            check_colors(colors, self.num_classes)
        self.root = Path(root)
        pairs = read_list(root, list_file)
        self.files = [(self.root / image, self.root / label if label else None) for image, label in pairs]
        self.names = _unique_names([image for image, _ in pairs], self.root / list_file)

    def __len__(self) -> int:
        return len(self.files)

    def missing_files(self) -> list[Path]:
        """The listed files that do not exist or are broken links."""
        return [path for pair in self.files for path in pair if path is not None and not path.is_file()]

    def load_image(self, index: int) -> np.ndarray:
        """H x W x 3 uint8 RGB, as stored (an EXIF rotation is not applied, because labels have none)."""
        return self.open_image(index)[:]

    def open_image(self, index: int) -> np.ndarray | PngRows:
        """As ``load_image``, but for most PNG files lazily: ``[:n]`` decodes the first n rows."""
        return open_image(self.files[index][0], self.image_range)

    def load_label(self, index: int) -> np.ndarray | None:
        """H x W uint8 train ids, or None where the sample has no label.

        Raises:
            ValueError: the file cannot be decoded or has an unknown raw id.
        """
        path = self.files[index][1]
        return None if path is None else self.read_label(path)

    def read_label(self, path: Path) -> np.ndarray:
        """The H x W uint8 train ids in a label file. A data set with other label formats overrides this."""
        raw = read_ids(path)
        if raw.ndim == 2:
            return map_ids(raw, self.table_of(path), path)
        if self.colors is None:
            raise ValueError(
                f"{path} holds colours; expected ids, in grey or in a palette. For a data set of type 'list' set "
                "data.color_table={(r, g, b): class, ...} with the class of each colour, 255 for void (converting the "
                "file to grey would mix the classes)"
            )
        return map_colors(raw, self.colors, path)

    def table_of(self, path: Path) -> np.ndarray:
        """The id table of a label file. A data set with several kinds of label files overrides this."""
        return self.id_table

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample: image H x W x 3 uint8 RGB and label H x W uint8 train ids (all 255 where there is no label).

        Raises:
            ValueError: a file cannot be decoded, the label has an unknown raw id, or the two sizes differ.
        """
        image, label = self.open(index)
        return image[:], label

    def open(self, index: int) -> tuple[np.ndarray | PngRows, np.ndarray]:
        """As ``load``, with the image of ``open_image``."""
        image, label = self.open_image(index), self.load_label(index)
        if label is None:
            label = np.full(image.shape[:2], VOID, np.uint8)
        if label.shape != image.shape[:2]:
            raise ValueError(
                f"{self.files[index][0]} is {image.shape[0]} x {image.shape[1]} (H x W) and its label "
                f"{self.files[index][1]} is {label.shape[0]} x {label.shape[1]}; expected the same size "
                "(as stored: an EXIF rotation is not applied)"
            )
        return image, label

    def __getitem__(self, index: int) -> dict:
        """The whole, untransformed sample: ``image`` 3 H W uint8, ``label`` H W uint8, ``name``."""
        return as_sample(*self.load(index), self.names[index])

    def to_raw_ids(self, label: np.ndarray) -> np.ndarray:
        """Train ids -> raw ids, for prediction files (the lowest, where a class has several raw ids).

        Raises:
            ValueError: a value is neither in 0..K-1 nor 255.
        """
        raw = self._raw_ids[label]
        if (raw < 0).any():
            bad = np.unique(label[raw < 0]).tolist()
            raise ValueError(f"train ids {bad}; expected 0..{self.num_classes - 1} or {VOID}")
        return raw.astype(np.uint8 if self._raw_ids.max() < 256 else np.uint16)


# Called with root, list_file and the options of the config's data section.
DATASETS: Registry[Callable[..., SegDataset]] = Registry("data set")


def as_sample(image: np.ndarray, label: np.ndarray, name: str) -> dict:
    """H W 3 and H W arrays -> ``image`` 3 H W uint8 tensor, ``label`` H W uint8 tensor, ``name``."""
    return {"image": planes(image), "label": torch.from_numpy(label.copy()), "name": name}


def planes(image: np.ndarray) -> torch.Tensor:
    """H W 3 -> 3 H W, a copy, because decoded or mapped memory may be read-only."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def _palette(colours: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    palette = np.asarray(colours)
    if palette.shape != (num_classes, 3) or palette.min() < 0 or palette.max() > 255:
        raise ValueError(f"palette of shape {palette.shape}; expected {num_classes} RGB colours in 0..255, one a class")
    return palette.astype(np.uint8)


def _unique_names(images: list[str], list_file: Path) -> list[str]:
    """File stems; where two are the same, whole paths joined by '__'; where these are too, with their suffixes."""
    paths = [PurePosixPath(image) for image in images]
    for names in (
        [path.stem for path in paths],
        ["__".join(path.with_suffix("").parts) for path in paths],
        ["__".join(path.parts) for path in paths],
    ):
        if len(set(names)) == len(names):
            return names
    repeated = min(name for name, count in Counter(names).items() if count > 1)
    raise ValueError(f"{list_file} lists the same image twice: {repeated}; keep one of the lines")
