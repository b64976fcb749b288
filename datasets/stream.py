"""The endless, resumable stream of training samples, with and without labels."""

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from datasets.base import SegDataset, as_sample, planes
from utils.names import VOID


class Pool:
    """Samples of one or several data sets, from which a stream draws.

    Args:
        parts: data sets, and the indices of the samples that belong to the pool.
        labels: False: no label is read; every pixel is void.
    """

    def __init__(self, parts: Sequence[tuple[SegDataset, Sequence[int]]], labels: bool = True):
        self.samples = [(dataset, index) for dataset, indices in parts for index in indices]
        self.names = [dataset.names[index] for dataset, index in self.samples]
        self.images = [dataset.files[index][0] for dataset, index in self.samples]
        self.num_classes, self.labels = parts[0][0].num_classes, labels

    def __len__(self) -> int:
        return len(self.samples)

    def load_label(self, number: int) -> np.ndarray | None:
        """As ``SegDataset.load_label``."""
        dataset, index = self.samples[number]
        return dataset.load_label(index)

    def open(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``SegDataset.open``."""
        dataset, index = self.samples[number]
        if self.labels:
            return dataset.open(index)
        image = dataset.open_image(index)
        return image, np.full(image.shape[:2], VOID, np.uint8)


class TrainStream(Dataset):
    """The samples of a whole training run, each a pure function of (seed, position).

    Position p is the global number of a sample: step * global batch size + offset. It belongs to epoch p // n, whose
    seeded permutation of the n samples decides which one is drawn; its augmentation has its own generator. So a resumed
    run is exact, and sees the same samples on any number of ranks and workers.

    A stream that repeats reads position p as p modulo (epochs * n), for order and augmentation. Then the teacher's
    output of a sample can be computed once and kept, but there are fewer different augmentations.

    Args:
        transform: ``(image H W 3 uint8, label H W uint8, rng) -> (image, label)``, or with a third item: the image in a
            higher resolution. It reads the image by ``image[:n]``, its first n rows.
        number: of the stream; streams of one seed and different numbers are independent.
        epochs: different passes over the data, after which the stream repeats; None: it never repeats.
        skip_bad: replace a sample that cannot be read by the next readable one in the epoch's order; still a function
            of (seed, position), as long as the same files are bad.

    Attributes:
        period: number of samples after which the stream repeats, or None.
    """

    def __init__(
        self,
        dataset: SegDataset | Pool,
        transform: Callable,
        seed: int,
        epochs: int | None = None,
        skip_bad: bool = False,
        number: int = 0,
    ):
        self.dataset, self.transform, self.seed, self.skip_bad = dataset, transform, seed, skip_bad
        self.number = number
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

        ``large_image`` 3 H W uint8 is there if the transform gives it.
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
                image, label, *large = self.transform(*self.dataset.open(index), self._generator(1, position))
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
        if large:
            sample["large_image"] = planes(*large)
        return {**sample, "position": position, "skipped": "\n".join(skipped)}

    def wrapped(self, position: int) -> int:
        """The first position with the same sample and augmentation as this one."""
        return position if self.period is None else position % self.period

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        """Independent streams for orders (purpose 0) and augmentations (purpose 1)."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2 * self.number + purpose, number)))


class JointStream(Dataset):
    """A stream of labelled and one of unlabelled samples, in one sequence of numbers.

    Labelled samples have the positions 0, 1, 2, ... and unlabelled ones -1, -2, -3, ...: -1 - p is the position p of
    the unlabelled stream. As an index, a wrapped position is a different place for each sample in an array as long as
    both periods together.

    Attributes:
        streams: those that there are, labelled first.
        skip_bad: whether samples that cannot be read are replaced.
        period: number of different samples, or None if they never repeat.
    """

    def __init__(self, labelled: TrainStream | None, unlabelled: TrainStream | None = None):
        self.labelled, self.unlabelled = labelled, unlabelled
        self.streams = [stream for stream in (labelled, unlabelled) if stream is not None]
        self.skip_bad = self.streams[0].skip_bad
        periods = [stream.period for stream in self.streams]
        self.period = None if None in periods else sum(periods)

    @property
    def num_samples(self) -> int:
        """Samples of the data sets, before augmentation."""
        return sum(len(stream.dataset) for stream in self.streams)

    def __getitem__(self, position: int) -> dict:
        """As ``TrainStream``."""
        if position >= 0:
            return self.labelled[position]
        sample = self.unlabelled[-1 - position]
        return {**sample, "position": -1 - sample["position"]}
