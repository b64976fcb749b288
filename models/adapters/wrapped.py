"""A module of another library as a network of ours: input, logits and taps are translated, its code stays as it is."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adapters.loading import load_strictly
from models.base import ModelSpec, Normalization, NormalizedModel, SegOutput, Tap
from models.weights.load import LoadReport
from models.weights.tensors import Weights
from utils.names import Registry, unknown_name

PROBE_SIDE = 64  # pixels, rounded up to a multiple of pad_to


class Source(NamedTuple):
    """A module, and how to read it. An adapter chooses these values; the config's keys replace them."""

    module: nn.Module  # takes B 3 H W normalised images
    report: LoadReport | None  # what was loaded into it; None: nothing
    normalization: Normalization | None = None  # of its images; None: the library does not say
    # Images are padded at the right and bottom with zeros after the normalisation, until their sides are multiples of
    # it; the maps are cropped.
    pad_to: int = 32
    # Keys, indices and attributes, joined by dots, that lead from what the module returns to its logits B K h w. None:
    # a tensor, ['out'], .logits or the first element. False: it has features only.
    output: str | int | bool | None = None
    # By name, 'module.path', whose output is B C h w or B N C; or 'module.path:output', with output as above. An empty
    # path is the module itself. A function chooses them from what the module returned.
    taps: Mapping[str, str] | Callable[[Any], dict[str, str]] = {}
    prefix_tokens: int = 0  # class and register tokens, which come before those of the grid in B N C
    family: str | None = None  # 'cnn' or 'transformer'; None: the latter if the encoder has a module of attention
    encoder: str = ""  # name of the part of the module that is the encoder; empty: all of it
    call: Callable[[nn.Module, Tensor], Any] | None = None  # calls the module; None: the images are its only argument
    load_encoder: Callable[[nn.Module, Weights], LoadReport] | None = None  # None: its layout is not known


# Called with what follows 'KIND:', the weights (or None) and the arguments of the config.
SOURCES: Registry[Callable[..., Source]] = Registry("source")
TRAINED = ("python", "smp")  # those that also give networks to train; then they are called with num_classes= too


class WrappedModel(NormalizedModel):
    """A network of another library. Its channels and strides are measured by one forward pass.

    Args:
        source: the module, with its normalisation. It is in evaluation mode afterwards.

    Attributes:
        aux_head: None, because its auxiliary outputs are not read.

    Raises:
        ValueError: the module cannot run, or the logits or a tap are not where the source says. The message says what
            the module returned.
    """

    aux_head = None

    def __init__(self, source: Source):
        super().__init__(source.normalization)
        self.module, self.call, self.pad_to = source.module.eval(), source.call, source.pad_to
        self.output, self.prefix_tokens = source.output, source.prefix_tokens
        self.encoder, self.load_encoder = source.encoder, source.load_encoder
        parts = (type(part).__name__ for part in self.backbone.modules())
        found = "transformer" if any("Attention" in name for name in parts) else "cnn"

        side = self.side = -(-PROBE_SIDE // self.pad_to) * self.pad_to
        probe = torch.zeros(1, 3, side, side)
        with torch.no_grad():
            try:
                returned = self._call(probe)
            except Exception as error:  # a module is a program: anything may go wrong in it
                raise ValueError(
                    f"{type(source.module).__name__} cannot run on an image of {side} x {side} pixels: "
                    f"{type(error).__name__}: {error}; set pad_to to the multiple that it needs"
                ) from error
            taps = source.taps(returned) if callable(source.taps) else source.taps
            self.places = {name: tuple(place.partition(":")[::2]) for name, place in taps.items()}
            modules = dict(self.module.named_modules())
            for name, (path, _) in self.places.items():
                if path not in modules:
                    near = unknown_name("module", path, modules, shown=())
                    raise ValueError(f"tap {name!r}: {near}. {self._candidates()}")
            logits, maps = self._forward(probe)
        if logits is None and not maps:
            raise ValueError(f"it gives neither logits nor taps: set taps. {self._candidates()}")
        self.tap_info = {name: self._measure(f"tap {name!r}", tensor) for name, tensor in maps.items()}
        self.num_classes, stride = (None, None) if logits is None else self._measure("the logits", logits)
        self.spec = ModelSpec(self.tap_info, self.num_classes, source.family or found, stride)

    @property
    def backbone(self) -> nn.Module:
        """The encoder, or the whole module where it is not known."""
        return self.module.get_submodule(self.encoder)

    def load(self, weights: Weights, part: str = "all") -> LoadReport:
        """Loads weights under the library's own names, strictly; an error leaves the network unchanged.

        Args:
            weights: of the whole network, or with ``part='backbone'`` of its encoder.
            part: ``'all'`` or ``'backbone'``.

        Raises:
            ValueError: tensors are missing, unknown or of another shape; or this part cannot be told from the others.
        """
        if part == "all":
            return load_strictly(self, weights, type(self.module).__name__)
        if part == "backbone" and self.load_encoder is not None:
            return self.load_encoder(self.backbone, weights)
        name = {"backbone": "encoder", "body": "last layer"}[part]
        raise ValueError(
            f"{weights.source}: the {name} of a {type(self.module).__name__} is not known here: give weights of the "
            "whole network, with the classes of the data, as student.init_from, or load them in your function"
        )

    def forward(self, images: Tensor) -> SegOutput:
        height, width = images.shape[-2:]
        x = F.pad(self.normalize(images), (0, -width % self.pad_to, 0, -height % self.pad_to))
        logits, maps = self._forward(x)

        def crop(what: str, tensor: Tensor, tap: Tap) -> Tensor:
            expected = (tap.channels, *(-(-side // tap.stride) for side in x.shape[-2:]))
            if tensor.shape[1:] != expected:
                raise ValueError(
                    f"{what}: {describe(tensor)} on an image of {x.shape[-2]} x {x.shape[-1]}; expected B x "
                    f"{describe_shape(expected)}, by the stride that was measured: set pad_to to a multiple of it"
                )
            return tensor[..., : -(-height // tap.stride), : -(-width // tap.stride)]

        taps = {name: crop(f"tap {name!r}", tensor, self.tap_info[name]) for name, tensor in maps.items()}
        if logits is not None:
            logits = crop("the logits", logits, Tap(self.num_classes, self.spec.logit_stride))
        return SegOutput(logits, taps, None)

    def _call(self, x: Tensor) -> Any:
        return self.module(x) if self.call is None else self.call(self.module, x)

    def _forward(self, x: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits and taps on the padded image."""
        with recording(self.module, {path for path, _ in self.places.values() if path}) as outputs:
            outputs[""] = returned = self._call(x)
        maps = {}
        for name, (path, inner) in self.places.items():
            if path not in outputs:
                raise ValueError(f"tap {name!r}: the module {path!r} does not run: choose another one")
            value = select(outputs[path], inner, f"tap {name!r}") if inner else outputs[path]
            maps[name] = as_map(value, x.shape[-2:], self.prefix_tokens, f"tap {name!r}")
        return (None if self.output is False else find_logits(returned, self.output)), maps

    def tap_candidates(self) -> dict[str, tuple[int, ...]]:
        """The modules that give a map or tokens on a square image, and the shapes of the maps without the batch."""
        names = {name for name, _ in self.module.named_modules() if name}
        with recording(self.module, names) as outputs, torch.no_grad():
            self._call(torch.zeros(1, 3, self.side, self.side))
        found = {}
        for name, value in outputs.items():
            try:
                shape = as_map(value, (self.side, self.side), self.prefix_tokens, name).shape[1:]
            except ValueError:
                continue
            if shape[1] == shape[2] > 1:
                found[name] = tuple(shape)
        return found

    def _candidates(self) -> str:
        last = {shape: name for name, shape in self.tap_candidates().items()}  # of each shape the last module
        listed = ", ".join(f"{name} ({describe_shape(shape)})" for shape, name in last.items()) or "none"
        return f"On an image of {self.side} x {self.side} these modules give maps, of each shape the last: {listed}"

    def _measure(self, what: str, tensor: Tensor) -> Tap:
        _, channels, height, width = tensor.shape
        if height != width or self.side % height:
            raise ValueError(
                f"{what}: {describe(tensor)} on an image of {self.side} x {self.side}; expected B x C x h x w with "
                f"{self.side} a multiple of h = w: choose another module, or set pad_to"
            )
        return Tap(channels, self.side // height)


def find_logits(returned: Any, output: str | int | bool | None) -> Tensor:
    """The logits in what a module returned, as :class:`Source` describes ``output``.

    Raises:
        ValueError: they are not there.
    """
    value = returned
    if output is not None:
        value = select(returned, output, "output")
    elif isinstance(returned, Mapping) and "out" in returned:
        value = returned["out"]
    elif getattr(returned, "logits", None) is not None:
        value = returned.logits
    elif isinstance(returned, Sequence) and len(returned):
        value = returned[0]
    if not (isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()):
        raise ValueError(
            f"output={output!r} gives {describe(value)}; expected logits B x K x h x w. The module returned "
            f"{describe(returned)}: set output to the key, index or attribute of the logits, or to False if it has "
            "features only"
        )
    return value


def select(value: Any, path: str | int, what: str) -> Any:
    """Follows keys, indices and attributes that are joined by dots.

    >>> select({"maps": ["a", "b"]}, "maps.1", "tap 'stage1'")
    'b'

    Raises:
        ValueError: there is no such key, index or attribute.
    """
    found = value
    for part in str(path).split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and part.lstrip("-").isdecimal() and -len(found) <= int(part) < len(found):
            found = found[int(part)]
        elif hasattr(found, part) and not isinstance(found, Tensor):
            found = getattr(found, part)
        else:
            raise ValueError(f"{what}: no {part!r} of {str(path)!r} in {describe(value)}")
    return found


def as_map(value: Any, size: Sequence[int], prefix_tokens: int, what: str) -> Tensor:
    """B C h w, or B N C tokens of an image of ``size`` (H, W) -> B C h w.

    Raises:
        ValueError: it is neither, or the tokens without the first ``prefix_tokens`` are not a grid of square cells.
    """
    if isinstance(value, Tensor) and value.ndim == 4:
        return value
    if not isinstance(value, Tensor) or value.ndim != 3:
        raise ValueError(f"{what}: {describe(value)}; expected a map B x C x h x w or tokens B x N x C")
    cells, pixels = value.shape[1] - prefix_tokens, size[0] * size[1]
    stride = math.isqrt(pixels // cells) if cells > 0 else 0
    if not stride or stride * stride * cells != pixels or size[0] % stride or size[1] % stride:
        raise ValueError(
            f"{what}: {describe(value)}, of which {prefix_tokens} come before the grid; {cells} tokens are no grid of "
            f"square cells on an image of {size[0]} x {size[1]}: set prefix_tokens to the number of class and register "
            "tokens"
        )
    grid = value[:, prefix_tokens:].transpose(1, 2)
    return grid.unflatten(2, (size[0] // stride, size[1] // stride))


@contextmanager
def recording(module: nn.Module, paths: set[str]) -> Iterator[dict[str, Any]]:
    """Inside, what the modules at ``paths`` return, the last time that they run."""
    outputs: dict[str, Any] = {}
    # For one forward pass: hooks that stay would still write for the original when the network is copied.
    hooks = [
        module.get_submodule(path).register_forward_hook(lambda *given, path=path: outputs.update({path: given[2]}))
        for path in paths
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def four_stages(strides: Sequence[int]) -> list[int]:
    """Indices of the last map of each of the last four strides; of four depths where all strides are equal.

    >>> four_stages([2, 4, 8, 16, 16, 32]), four_stages([16] * 12)
    ([1, 2, 4, 5], [2, 5, 8, 11])
    """
    last = {stride: index for index, stride in enumerate(strides)}
    if len(last) > 1:
        return sorted(last.values())[-4:]
    return sorted({-(-len(strides) * depth // 4) - 1 for depth in (1, 2, 3, 4)})


def describe_shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def describe(value: Any) -> str:
    """Types and shapes: what a module returned."""
    if isinstance(value, Tensor):
        return f"a tensor {describe_shape(value.shape) or 'scalar'}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__}({', '.join(f'{key}: {describe(each)}' for key, each in value.items())})"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(describe, value))})"
    return f"a {type(value).__name__}"
