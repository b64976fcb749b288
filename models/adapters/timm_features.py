"""``timm:NAME``: the features of any network of timm at four depths, such as DINOv2, DINOv3, SigLIP, SAM and EVA."""

import math
from typing import Any

import timm
from torch import Tensor, nn

from models.adapters.loading import load_strictly, need_weights, report_own
from models.adapters.wrapped import SOURCES, Source, four_stages
from models.base import Normalization
from utils.names import unknown_name

# Options that let a network take images of any size; few networks have one of them.
ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


@SOURCES.register("timm")
def from_timm(name: str, weights: str | None, arguments: dict[str, Any]) -> Source:
    """A network without its classifier.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: timm has no such network, it has no ``forward_intermediates``, the file does not fit, or
            ``weights='timm'`` cannot be downloaded.
    """
    if not timm.is_model(name):
        raise unknown_name("network of timm", name, timm.list_models(), shown=())
    hub = weights == "timm"
    read = None if hub else need_weights(f"timm:{name}", weights)
    module = _create(name, hub, arguments)
    if not hasattr(module, "forward_intermediates"):
        raise ValueError(f"timm:{name} has no forward_intermediates, so its features cannot be read")
    classifier = module.default_cfg["classifier"]
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    skip = tuple(f"{each}." for each in names)
    report = report_own(module, f"timm:{name}", "timm") if read is None else load_strictly(module, read, "timm", skip)
    strides = [each["reduction"] for each in module.feature_info]
    stages = four_stages(strides)

    def features(module: nn.Module, images: Tensor) -> list[Tensor]:
        return module.forward_intermediates(images, indices=stages, intermediates_only=True)

    mean, std = (tuple(round(255 * each, 3) for each in module.default_cfg[key]) for key in ("mean", "std"))
    taps = {f"stage{i}": f":{i - 1}" for i in range(1, len(stages) + 1)}
    pad_to = math.lcm(*(strides[i] for i in stages))
    return Source(module, report, Normalization(mean, std), pad_to, False, taps, call=features)


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    for options in ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **{**options, **arguments})
        except TypeError as error:  # it has no such option
            reason = error
        except Exception as error:  # the hub's client, and the network below it, raise many types
            reason = error
            break
    hint = "; its weights are on a hub: give a file instead of 'timm'" if pretrained else ""
    raise ValueError(f"timm:{name} cannot be built with {arguments}: {reason}{hint}") from reason
