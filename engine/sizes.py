"""Checks, before the first step, that the networks take the training crops and the validation images."""

from concurrent.futures import ThreadPoolExecutor

from torch import nn

from configs.schema import Experiment
from datasets.base import SegDataset
from models.inference import Size
from models.sizes import ENOUGH, error_at, smallest_side, too_small
from utils.config import ConfigError


def check_crop(config: Experiment, source: str, student: nn.Module, teacher: nn.Module | None, batch: int) -> None:
    """Tries both networks, the student in training mode, on ``batch`` images of the size of a training crop.

    Raises:
        ConfigError: a network cannot run on them.
    """
    crop = config.data.crop_size
    for name, network in {"student": student, "teacher": teacher}.items():
        error = None if network is None else error_at(network, crop, batch)
        # With more images of a large size, it is not the size: the network cannot run on tensors without values.
        if error is None or error_at(network, (ENOUGH, ENOUGH), batch + 1) is not None:
            continue
        side = smallest_side(network, batch)
        ways = [] if side is None else [f"set data.crop_size=({side}, {side}) or larger"]
        if error_at(network, crop, batch + 1) is None:  # batch statistics over one value
            ways += ["raise train.batch_size or lower train.accumulate", "set a smaller student.output_stride"]
        elif name == "teacher":
            ways.append("raise teacher.scale")
        raise ConfigError(
            f"{source}: data.crop_size: the {name} cannot run on {batch} image(s) of {crop[0]} x {crop[1]} pixels at a "
            f"time ({error}): {', or '.join(ways)}"
        )


def check_validation_sizes(
    config: Experiment, source: str, dataset: SegDataset, networks: dict[str, nn.Module]
) -> None:
    """Reads the size of every validation image, if a network does not take every size.

    Networks (by role) without logits are left out: they are not evaluated.

    Raises:
        ConfigError: an image is too small for a network.
    """
    window = config.eval.crop_size if config.eval.mode == "slide" else None

    def reason(network: nn.Module, size: Size) -> str | None:
        return too_small(network, size, config.eval.scales, window)

    limited = {
        name: network
        for name, network in networks.items()
        if network.spec.num_classes is not None and reason(network, (1, 1))
    }
    if not limited:
        return
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda index: dataset.open_image(index).shape[:2], range(len(dataset))))
    smaller_than_all = tuple(map(min, zip(*sizes, strict=True)))
    for name, network in limited.items():
        if reason(network, smaller_than_all) is None:
            continue
        for size in sorted(set(sizes)):
            if problem := reason(network, size):
                path = dataset.files[sizes.index(size)][0]
                raise ConfigError(f"{source}: data.val_list: {path} is too small for the {name}: {problem}")
