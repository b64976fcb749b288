"""A network as it is deployed: uint8 images in, class maps or logits of the same size out."""

from collections.abc import Sequence
from copy import deepcopy
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import NormalizedModel
from models.heads.layers import RegionAverage
from models.inference import scaled_size

OUTPUTS = ("classes", "logits")


class Deployable(nn.Module):
    """Normalisation, network, upsampling and argmax as one module, for export.

    The class map is uint8: every runtime supports it, and it is eight times smaller than the int64 of argmax. With
    ``half`` the network computes in float16; normalisation, upsampling and outputs keep their types.

    Args:
        model: the network; it is copied.
        outputs: which of ``OUTPUTS`` to return, in this order.
        half: compute in float16.
        scale: the images are first resized by this factor on height and width, as in ``models.inference.predict``.
        input_scale: then by this one, as a teacher with an input scale does (``models.inference.scaled_size``).

    Raises:
        ValueError: ``outputs`` is empty, has an unknown name or a name twice; or the network has no logits, or over
            255 classes.
    """

    def __init__(
        self,
        model: NormalizedModel,
        outputs: Sequence[str] = ("classes",),
        half: bool = False,
        scale: float = 1.0,
        input_scale: Fraction = Fraction(1),
    ):
        super().__init__()
        if not outputs or len(set(outputs)) < len(outputs) or not set(outputs) <= set(OUTPUTS):
            raise ValueError(f"outputs are {list(outputs)}; expected one or both of {', '.join(OUTPUTS)}, once each")
        if model.num_classes is None:
            raise ValueError("the network has features and no logits: it predicts no classes and cannot be deployed")
        if model.num_classes > 255:
            raise ValueError(f"the network has {model.num_classes} classes; expected at most 255: class maps are uint8")
        self.model, self.outputs, self.scale = deepcopy(model).requires_grad_(False), tuple(outputs), scale
        self.input_scale = input_scale
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, RegionAverage(child.output_size))
        if half:
            self.model.dtype = torch.float16
            for child in self.model.children():
                child.half()
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """B 3 H W uint8 RGB -> ``classes`` B H W uint8, ``logits`` B K H W float32 (bilinearly upsampled), or both."""
        size = images.shape[-2:]
        if self.scale != 1:
            scaled = [max(1, torch.sym_int(length * self.scale + 0.5)) for length in size]
            images = F.interpolate(images.float(), scaled, mode="bilinear", antialias=self.scale < 1)
        if self.input_scale != 1:
            seen = scaled_size(images.shape[-2:], self.input_scale)
            images = F.interpolate(images.float(), seen, mode="bilinear", antialias=self.input_scale < 1)
        logits = F.interpolate(self.model(images).logits.float(), size, mode="bilinear", align_corners=False)
        given = {"logits": logits, "classes": logits.argmax(1).to(torch.uint8)}
        return tuple(given[name] for name in self.outputs)
