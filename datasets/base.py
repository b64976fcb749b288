"""Labelled images read from list files, and the endless, resumable stream of training samples."""

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
    """Reads ``image label`` pairs, one a line, both relative to ``root``.

    Blank lines are ignored. A line without a label (a test set with secret labels) gives ``(image, None)``. Fields are
    separated by white space, or by one tab where a name contains spaces. The text is UTF-8, with or without a byte
    order mark. Links under ``root`` may lead anywhere.

    Args:
        root: folder of the data set.
        list_file: the list, relative to ``root`` or absolute.

    Raises:
        FileNotFoundError: ``root`` or the list is missing.
        ValueError: the list is not UTF-8 text, a line has more than two fields, a path is absolute or leads out of
            ``root``, or the list is empty.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data root {root} is not a folder; put or link the data set there, or set data.root "
            "(scripts/quickstart.sh makes the data of the demo)"
        )
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
                raise ValueError(f"{path}:{number}: {name!r} leads out of the data root; expected a path inside {root}")
        pairs.append((fields[0], fields[1] if len(fields) == 2 else None))
    if not pairs:
        raise ValueError(f"list file {path} is empty; expected one 'image label' a line")
    return pairs


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
        root: ``Path``.
        class_names: K names.
        num_classes: K.
        palette: K x 3 uint8 RGB.
        id_table: 256 or 65536 uint8, raw id -> train id; 255 is void, 254 marks a raw id that is an error.
        colors: as the argument.
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


class TrainStream(Dataset):
    """The samples of a whole training run, each a pure function of (seed, position).

    Position p is the global number of a sample: step * global batch size + offset. It belongs to epoch p // n, whose
    seeded permutation of the n samples decides which one is drawn; its augmentation has its own generator. So a resumed
    run is exact, and sees the same samples on any number of ranks and workers.

    A stream that repeats reads position p as p modulo (epochs * n), for order and augmentation. Then the teacher's
    output of a sample can be computed once and kept, but there are fewer different augmentations.

    Args:
        dataset: where samples come from; all of them must have labels.
        transform: ``(image H W 3 uint8, label H W uint8, rng) -> (image, label)``, which reads the image by
            ``image[:n]``, its first n rows.
        seed: of order and augmentation.
        epochs: different passes over the data, after which the stream repeats; None: it never repeats.
        skip_bad: replace a sample that cannot be read by the next readable one in the epoch's order; still a function
            of (seed, position), as long as the same files are bad.

    Attributes:
        period: number of samples after which the stream repeats, or None.

    Raises:
        ValueError: a sample of the data set has no label.
    """

    def __init__(
        self,
        dataset: SegDataset,
        transform: Callable,
        seed: int,
        epochs: int | None = None,
        skip_bad: bool = False,
    ):
        unlabelled = [name for name, (_, label) in zip(dataset.names, dataset.files, strict=True) if label is None]
        if unlabelled:
            raise ValueError(f"{len(unlabelled)} training samples have no label in their list, first {unlabelled[0]}")
        self.dataset, self.transform, self.seed, self.skip_bad = dataset, transform, seed, skip_bad
        self.period = None if epochs is None else epochs * len(dataset)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def index(self, position: int, after: int = 0) -> int:
        """The sample of the data set at this position of the run, or ``after`` samples later in its epoch's order."""
        epoch, offset = divmod(self.wrapped(position), len(self.dataset))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._generator(0, epoch).permutation(len(self.dataset))
        return int(self._order[(offset + after) % len(self.dataset)])

    def __getitem__(self, position: int) -> dict:
        """The transformed sample: ``image`` 3 h w uint8, ``label`` h w uint8, ``name``, ``position`` (wrapped).

        ``skipped`` names the samples that it replaces and why, one a line; mostly ''.

        Raises:
            ValueError, OSError: it cannot be read and ``skip_bad`` is False, or more than half of the data set in a row
                cannot be read.
        """
        position, skipped = self.wrapped(position), []
        while True:
            index = self.index(position, after=len(skipped))
            try:
                # The transform decodes the rows of a PNG.
                image, label = self.transform(*self.dataset.open(index), self._generator(1, position))
                break
            except (ValueError, OSError) as error:
                if not self.skip_bad:
                    raise
                skipped.append(f"{self.dataset.names[index]}: {' '.join(str(error).split())}")
                if 2 * len(skipped) > len(self.dataset):
                    raise ValueError(
                        f"{len(skipped)} of the {len(self.dataset)} training samples in a row cannot be read, more "
                        f"than half of them: fix the data; the last is {skipped[-1]}"
                    ) from error
        sample = as_sample(image, label, self.dataset.names[index])
        return {**sample, "position": position, "skipped": "\n".join(skipped)}

    def wrapped(self, position: int) -> int:
        """The first position with the same sample and augmentation as this one."""
        return position if self.period is None else position % self.period

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        """Independent streams for orders (purpose 0) and augmentations (purpose 1)."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(purpose, number)))


def as_sample(image: np.ndarray, label: np.ndarray, name: str) -> dict:
    """H W 3 and H W arrays -> ``image`` 3 H W uint8 tensor, ``label`` H W uint8 tensor, ``name``."""
    planes = image.transpose(2, 0, 1).copy()  # copies, because decoded or mapped memory may be read-only
    return {"image": torch.from_numpy(planes), "label": torch.from_numpy(label.copy()), "name": name}


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
