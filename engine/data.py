"""Builds the data of a validated config and checks it.

Every error of a component names the config file and the key that asked for it.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from configs.schema import Experiment
from datasets import build_dataset
from datasets.base import SegDataset
from datasets.census import check_census, class_weights, count_labels
from datasets.mixing import Mixing
from datasets.sequences import group_sequences
from datasets.stream import JointStream, Pool, TrainStream
from datasets.transforms import TrainTransform
from utils.config import ConfigError, config_errors, validate


def build_split(config: Experiment, source: str, split: str, check_files: bool = True) -> SegDataset:
    """The dataset of ``split`` ('train', 'val', 'test' or 'unlabelled') at full size, not augmented.

    ``check_files=False`` accepts a list whose files are missing, for a caller that names each of them.
    """
    key = split if split == "unlabelled" else f"{split}_list"
    list_file = getattr(config.data, key)
    if list_file is None:
        raise ConfigError(f"{source}: data.{key} is None: this config has no {split} split")
    packed = None if config.data.packed is None else Path(config.data.packed) / split
    options = config.data.options
    if split == "unlabelled" and config.data.unlabelled_root is not None:
        options["root"] = config.data.unlabelled_root
    with config_errors(source, "data"):
        return build_dataset(list_file=list_file, packed=packed, check_files=check_files, **options)


def build_train_stream(config: Experiment, source: str) -> JointStream:
    """The endless augmented training stream, indexed by position.

    Raises:
        ConfigError: a data set cannot be built, an image of the training list has no label, or no image is left to be
            unlabelled.
    """
    data, labelled, without = config.data, [], []
    if data.train_list is not None:
        dataset = build_split(config, source, "train")
        chosen, rest = share_labels(dataset, data.labelled_fraction, data.split_seed)
        if missing := [dataset.names[index] for index in chosen if dataset.files[index][1] is None]:
            raise ConfigError(
                f"{source}: data.train_list: {len(missing)} training samples have no label in their list, first "
                f"{missing[0]}; name images without labels in data.unlabelled"
            )
        labelled, without = [(dataset, chosen)], [(dataset, rest)]
    if data.unlabelled is not None:
        dataset = build_split(config, source, "unlabelled")
        without.append((dataset, range(len(dataset))))

    larger = Fraction(str(config.teacher.scale)) if config.teacher else 1

    def stream(pool: Pool, number: int, **transform: Any) -> TrainStream:
        augment = TrainTransform(**{**data.transform, **transform}, larger=larger)
        return TrainStream(pool, augment, config.data_seed, data.distinct_epochs, data.on_bad_sample == "skip", number)

    of_labelled = stream(Pool(labelled), number=0) if labelled else None
    if not config.train.unlabelled_batch:
        return JointStream(of_labelled)
    unlabelled = Pool(without, labels=False)
    if not len(unlabelled):
        raise ConfigError(
            f"{source}: data.labelled_fraction: {data.labelled_fraction} of {len(dataset)} images are all of them, so "
            "none is unlabelled: set a smaller share, or train.unlabelled_batch=0"
        )
    # Without classes, a crop cannot have too much of one.
    return JointStream(of_labelled, stream(unlabelled, number=1, cat_max_ratio=1.0))


def share_labels(dataset: SegDataset, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The samples whose labels are used, and the others, in the order of the list.

    Whole videos are drawn until there are enough images; of the last video its first frames are used.
    """
    number = max(1, round(share * len(dataset)))
    images = [image.relative_to(dataset.root).as_posix() for image, _ in dataset.files]
    order = [index for group in group_sequences(images, seed) for index in group]
    return sorted(order[:number]), sorted(order[number:])


def check_leaks(source: str, unlabelled: Sequence[Path], validation: SegDataset) -> None:
    """Raises ConfigError if an unlabelled image is an image of the validation set."""
    held_out = {image.resolve() for image, _ in validation.files}
    leaks = [image for image in unlabelled if image.resolve() in held_out]
    if leaks:
        raise ConfigError(
            f"{source}: data.unlabelled: {len(leaks)} of the images are in the validation set too, first {leaks[0]}: "
            "the student would learn from the images that measure it; remove them from data.unlabelled"
        )


def build_mixing(config: Experiment, micro_batches: int) -> Mixing | None:
    """The mixing of training images; None where the config has none.

    Args:
        config: the experiment.
        micro_batches: into which a step is divided, over all ranks.

    Raises:
        ValueError: the images of a micro-batch are not pairs.
    """
    data, train = config.data, config.train
    if data.mixing is None:
        return None
    for name, size in (("labelled", train.batch_size), ("unlabelled", train.unlabelled_batch)):
        if data.mixing_domain in (name, "both") and size // micro_batches % 2:
            raise ValueError(
                f"data.mixing mixes images in pairs, and each of {micro_batches} micro-batches has "
                f"{size // micro_batches} {name} images; expected an even number"
            )
    return Mixing(data.mixing, data.mixing_probability, data.mixing_domain, config.data_seed)


def resolve_epochs(config: Experiment, source: str, stream: JointStream) -> Experiment:
    """The experiment with ``schedule.max_iters`` instead of ``schedule.epochs``.

    An epoch is a pass over the labelled images, or over the unlabelled ones if no image has a label.

    Raises:
        ConfigError: the schedule's other keys do not fit the number of steps.
    """
    epochs = config.schedule.epochs
    if epochs is None:
        return config
    samples, batch_size = len(stream.streams[0].dataset), config.train.batch_size or config.train.unlabelled_batch
    values, steps = config.model_dump(), -(-epochs * samples // batch_size)
    values["schedule"] |= {"epochs": None, "max_iters": steps}
    return validate(values, Experiment, f"{source}: schedule.epochs={epochs} makes {steps} steps")


def check_labels(
    config: Experiment, source: str, train: Pool | None, val: SegDataset
) -> tuple[list[str], tuple[float, ...] | None]:
    """Reads the labels of both splits.

    Args:
        config: the experiment.
        source: the config file, which errors name.
        train: labelled training samples; None: there are none.
        val: the validation set.

    Returns:
        What is odd about them, in sentences (``datasets.census.check_census``); and the weights that
        ``train.class_weights='auto'`` stands for (``datasets.census.class_weights``), None without training labels.

    Raises:
        ConfigError: a label cannot be read, nothing can be learned, or no mIoU can be measured.
    """
    of_train = None
    if train is not None:
        with config_errors(source, "data.train_list"):
            of_train = count_labels(train, "train", skip_bad=config.data.on_bad_sample == "skip")
    with config_errors(source, "data.val_list"):
        of_val = count_labels(val, "val")
    try:
        notes = check_census(of_train, of_val, val.class_names, config.data.ids_by_default)
    except ValueError as error:  # it names the key
        raise ConfigError(f"{source}: {error}") from error
    return notes, None if of_train is None else class_weights(of_train.pixels)
