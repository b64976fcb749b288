"""The training loader, from PNG files and from a packed folder, against the loader of the field's releases."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from datasets import build_dataset
from datasets.base import SegDataset, read_classes
from datasets.packed import PackedDataset
from datasets.stream import TrainStream
from datasets.transforms import TrainTransform
from scripts.benchmarks.timing import Timing, time_each
from scripts.pack_dataset import Packer
from scripts.street.scene import write_synthetic
from utils.names import VOID

SIZE, CROP, SCALES = (1024, 2048), (512, 1024), (0.5, 2.0)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet, RGB


class PublishedLoader:
    """The loader of the releases of distillation for segmentation, rebuilt from their description.

    The whole image and label are decoded; each id is mapped by a mask; both are resized; the mean is subtracted from
    the whole image, which NumPy does in float64; both are padded, cropped, mirrored and copied as float32.

    With ``crop_first`` it normalises only the crop, in float32, as some releases do.
    """

    def __init__(self, dataset: SegDataset, crop_first: bool):
        self.files, self.crop_first = dataset.files, crop_first
        self.ids = dict.fromkeys(range(34), VOID) | read_classes("cityscapes")[2]

    def __call__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """3 h w float32 and h w float32."""
        rng = np.random.default_rng(position)
        image_file, label_file = self.files[position % len(self.files)]
        image = cv2.imread(str(image_file), cv2.IMREAD_COLOR)
        raw = cv2.imread(str(label_file), cv2.IMREAD_GRAYSCALE)
        label = raw.astype(np.int32)
        for value, train in self.ids.items():
            label[raw == value] = train
        scale = rng.uniform(*SCALES)
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        if not self.crop_first:
            image = np.asarray(image, np.float32) - 255 * MEAN[::-1]
        bottom, right = (max(0, crop - side) for crop, side in zip(CROP, label.shape, strict=True))
        if bottom or right:
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
            label = cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=VOID)
        top, left = (rng.integers(side - crop + 1) for crop, side in zip(CROP, label.shape, strict=True))
        window = slice(top, top + CROP[0]), slice(left, left + CROP[1])
        image, label = np.asarray(image[window], np.float32), np.asarray(label[window], np.float32)
        if self.crop_first:
            image = image[:, :, ::-1] / np.float32(255)
            image -= MEAN
            image /= STD
        image, step = image.transpose(2, 0, 1), rng.choice((1, -1))
        return torch.from_numpy(image[:, :, ::step].copy()), torch.from_numpy(label[:, ::step].copy())


def write_streets(root: Path, number: int) -> int:
    """Writes street pictures in Cityscapes' layout and size, blurred to compress like photographs.

    Returns the mean size of an image file in bytes.
    """
    write_synthetic(root / "painted", train=number, val=1, size=SIZE)
    painted = build_dataset("camvid", root / "painted", "train.txt")
    table = np.zeros(256, np.uint8)  # CamVid's void becomes label id 0, which Cityscapes ignores
    label_ids = list(read_classes("cityscapes")[2])
    table[: len(label_ids)] = label_ids
    lines, sizes = [], []
    for index, name in enumerate(painted.names):
        image, label = painted.load(index)
        Image.fromarray(cv2.GaussianBlur(image, (0, 0), 0.8)).save(root / f"{name}.png")
        Image.fromarray(table[label]).save(root / f"{name}_labelIds.png")
        lines.append(f"{name}.png {name}_labelIds.png\n")
        sizes.append((root / f"{name}.png").stat().st_size)
    (root / "train.txt").write_text("".join(lines))
    return round(sum(sizes) / number)


def batches_of(load: Callable[[int], Any], number: int) -> Callable[[], None]:
    """A function that loads the next ``number`` samples at every call."""
    positions = count()

    def run() -> None:
        for _ in range(number):
            load(next(positions))

    return run


def run(quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Seconds a training sample in this process, files in the page cache: 2048 x 1024 to a crop of 1024 x 512."""
    number, rounds = (4, 4) if quick else (12, 15)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in a worker
    try:
        with TemporaryDirectory() as folder:
            root = Path(folder)
            size = write_streets(root, 2 if quick else 4)
            files = build_dataset("cityscapes", root, "train.txt")
            Packer(files, root / "packed").run()
            loaders = {
                "published": PublishedLoader(files, crop_first=False),
                "crop first": PublishedLoader(files, crop_first=True),
            }
            packed = PackedDataset(files, root / "packed")
            for name, dataset in (("PNG", files), ("packed", packed)):
                loaders[name] = TrainStream(dataset, TrainTransform(CROP, SCALES), seed=0).__getitem__
            alternatives = {name: batches_of(load, number) for name, load in loaders.items()}
            times = time_each(alternatives, device, rounds)
    finally:
        cv2.setNumThreads(threads)
    times = {name: Timing(*(seconds / number for seconds in each)) for name, each in times.items()}
    note = f"PNG files of {size / 2**20:.1f} MiB; a published loader that normalises the crop alone: "
    return [
        {
            "what": f"loader, {name}", "unit": "s a sample", "ours": times[name].median,
            "published": times["published"].median, "ratio": times["published"].median / times[name].median,
            "spread": times[name].spread, "crop_first": times["crop first"].median,
            "note": note + f"{1e3 * times['crop first'].median:.0f} ms",
        }
        for name in loaders
        if name not in ("published", "crop first")
    ]  # fmt: skip
