"""``torchvision:NAME``: a segmentation network of torchvision, with a file of its weights."""

from typing import Any

from torchvision.models import segmentation

from models.adapters.loading import load_strictly, need_weights
from models.adapters.wrapped import SOURCES, Source
from models.base import NORMALIZATIONS
from utils.names import unknown_name

NAMES = (
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101"),
    *("fcn_resnet50", "fcn_resnet101", "lraspp_mobilenet_v3_large"),
)
# Of the blocks of MobileNetV3 the last of each stride; dilation keeps the last one at 16.
MOBILENET = {"stage1": "backbone.3", "stage2": "backbone.6", "stage3": "backbone.12", "stage4": "backbone.16"}
RESNET = {f"stage{i}": f"backbone.layer{i}" for i in (1, 2, 3, 4)}
HEAD = {"head": "classifier.3"}  # what the last convolution of FCN and DeepLabV3 reads


@SOURCES.register("torchvision")
def from_torchvision(name: str, weights: str | None, arguments: dict[str, Any]) -> Source:
    """The number of classes and the auxiliary head are those of the file.

    Raises:
        ValueError: the name is unknown, there is no file, or it does not fit.
    """
    if name not in NAMES:
        raise unknown_name("segmentation network of torchvision", name, NAMES)
    read = need_weights(f"torchvision:{name}", weights)
    lraspp = name.startswith("lraspp")
    last = read.tensors.get("classifier.low_classifier.weight" if lraspp else "classifier.4.weight")
    if last is None:
        raise ValueError(f"{read.source} has no last layer of {name}: expected torchvision's own names")
    if not lraspp:
        arguments = {"aux_loss": any(key.startswith("aux_classifier.") for key in read.tensors), **arguments}
    build = getattr(segmentation, name)
    module = build(weights=None, weights_backbone=None, num_classes=len(last), **arguments)
    report = load_strictly(module, read, "torchvision")
    taps = {**(RESNET if "resnet" in name else MOBILENET), **({} if lraspp else HEAD)}
    return Source(module, report, NORMALIZATIONS["imagenet"], taps=taps)
