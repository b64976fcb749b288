"""The frozen teacher: its weights, precision, input scale, class map, kept outputs and sharding in one place."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Experiment
from datasets.packed import describe_sample
from datasets.stream import JointStream
from engine.build import NETWORK, check_class_names, load_trained, network_settings, weights_errors
from engine.sharding import compile_in_place, shard_network
from engine.teacher_cache import TeacherCache
from models import (
    LoadReport,
    MappedModel,
    ModelSpec,
    Normalization,
    SegOutput,
    Tap,
    Weights,
    build_model,
    build_wrapped,
    read_weights,
    source_settings,
)
from models.inference import resize, scaled_size, sharded_part
from models.placement import place
from utils.config import config_errors
from utils.distributed import World, all_reduce_max
from utils.names import unknown_name


class Teacher(nn.Module):
    """A frozen network. It has no gradients and stays in evaluation mode.

    Training, evaluation and pictures call it and read its ``spec``; they know nothing else of it.

    Args:
        network: ``network(images) -> SegOutput`` for B 3 H W RGB images in 0..255, with a ``spec``. A network that has
            features only gives None as logits, and ``spec.num_classes`` is None.
        scale: factor on the sides of the images that the network sees.
        loaded: what was loaded into the network; None: its weights are random.

    Attributes:
        cache: where outputs on training samples are kept, or None: then the network runs every time.
    """

    def __init__(self, network: nn.Module, scale: float = 1.0, loaded: LoadReport | None = None):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.scale, self.loaded = Fraction(str(scale)), loaded  # exact, so that declared and real grids agree
        self.world: World | None = None
        self.cache: TeacherCache | None = None

    @property
    def spec(self) -> ModelSpec:
        """What the network declares, its strides divided by the scale: they count pixels of the image as given."""
        spec = self.network.spec
        taps = {name: tap._replace(stride=self._on_the_image(tap.stride)) for name, tap in spec.taps.items()}
        logit_stride = spec.logit_stride and self._on_the_image(spec.logit_stride)
        return spec._replace(taps=taps, logit_stride=logit_stride)

    def _on_the_image(self, stride: int) -> int | Fraction:
        stride = stride / self.scale
        return int(stride) if stride.denominator == 1 else stride

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode whatever ``mode`` is."""
        return super().train(False)

    def prepare(
        self,
        world: World,
        *,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        shard: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        """Moves the network, in place, to the device where it will run.

        Args:
            autocast_dtype: of the autocast that it will run in; its weights are cast to it once, here.
            shard: each rank holds a part of every weight (``engine.sharding``).
            compile_blocks: ``torch.compile`` of its repeated blocks (``engine.sharding``).
        """
        self.world = world
        if autocast_dtype is not None:
            cast_weights(self.network, autocast_dtype)
        if shard and world.size > 1:
            shard_network(self.network, world, channels_last)
        else:
            place(self.network, world.device, channels_last)
        if compile_blocks:
            compile_in_place(self.network)

    @torch.no_grad()
    def forward(
        self, images: Tensor, positions: Sequence[int] | Tensor | None = None, large: Tensor | None = None
    ) -> SegOutput:
        """The teacher's output.

        With a cache and positions, it is always what the cache returns: whether a sample was stored before changes no
        number.

        Args:
            images: B 3 H W RGB, uint8 or float in 0..255.
            positions: of the B images in the training stream; None where they are not from there.
            large: the same images at ``scale`` times the size; None: ``images`` are resized.
        """
        if self.cache is None or positions is None:
            return self._run(images, large)
        kept = self.cache.recall(positions)
        missing = kept is None
        if sharded_part(self.network) is not None:  # it runs on all ranks or on none
            missing = all_reduce_max(missing, self.world)
        if missing:
            self.cache.store(positions, self._run(images, large))
            kept = self.cache.recall(positions)
        return kept

    def _run(self, images: Tensor, large: Tensor | None) -> SegOutput:
        if large is None:
            large = images if self.scale == 1 else resize(images, scaled_size(images.shape[-2:], self.scale))
        return self.network(large)


def in_own_resolution(model: nn.Module, protocol: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """For a teacher with a scale above 1: its network, and the protocol with larger scales. Else both as given.

    ``Teacher`` enlarges the views that it gets, and these lack details of the image. So evaluate its network instead.
    """
    if not isinstance(model, Teacher) or model.scale <= 1:
        return model, dict(protocol)
    return model.network, {**protocol, "scales": tuple(scale * float(model.scale) for scale in protocol["scales"])}


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights of convolutions and linear layers once; autocast would cast them in every forward pass."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)


def build_teacher(
    config: Experiment, source: str, class_names: Sequence[str], pretrained: bool = True
) -> Teacher | None:
    """The config's teacher on the host, or None where the config has none or the student teaches itself.

    Args:
        pretrained: False: random weights; the file is read only if the config does not give the network.

    Raises:
        ConfigError: the weights or the class map do not fit the network or the data.
    """
    if config.teacher is None or config.self_taught:
        return None
    if config.teacher.source is not None:
        return _build_wrapped_teacher(config, source, class_names)
    settings, weights, loaded = network_settings(config.teacher), None, None
    if pretrained or config.teacher.backbone is None:
        with weights_errors(source, "teacher.weights"):
            weights = read_weights(config.teacher.weights)
            settings = _complete_settings(settings, weights)
    names = config.teacher.class_map
    with config_errors(source, "teacher"):
        settings["normalization"] = settings["normalization"] or "imagenet"
        network = build_model(num_classes=len(class_names if names is None else names), **settings)
    if pretrained:
        with config_errors(source, "teacher.weights"):
            loaded = load_trained(network, weights, class_names if names is None else None)
    if names is not None:
        with config_errors(source, "teacher.class_map"):
            network = MappedModel(network, _class_indices(names, class_names), len(class_names))
    return Teacher(network, config.teacher.scale, loaded)


def _build_wrapped_teacher(config: Experiment, source: str, class_names: Sequence[str]) -> Teacher:
    """A teacher of another library. Its weights are always loaded: the library builds it from them."""
    settings, class_map = config.teacher, config.teacher.class_map
    with config_errors(source, f"teacher.source={settings.source}"):
        network, loaded = build_wrapped(**settings.wrapped)
    if network.num_classes is None:
        return Teacher(network, settings.scale, loaded)
    with config_errors(source, "teacher.class_map"):
        if class_map is None:
            check_class_names(loaded, class_names)
            if network.num_classes != len(class_names):
                raise ValueError(
                    f"{settings.source} has {network.num_classes} classes and the data has {len(class_names)}: set "
                    "class_map to the data's class, or None, for each"
                )
        else:
            if isinstance(class_map, Mapping):
                own = loaded.metadata.get("class_names", ())
                used = dict(zip(_class_indices(class_map, own), class_map.values(), strict=True))
                if wrong := sorted(used.keys() - set(range(network.num_classes))):
                    raise ValueError(
                        f"class_map names the classes {wrong}; {settings.source} has 0..{network.num_classes - 1}"
                    )
                class_map = [used.get(index) for index in range(network.num_classes)]
            network = MappedModel(network, _class_indices(class_map, class_names), len(class_names))
    return Teacher(network, settings.scale, loaded)


def _class_indices(names: Iterable[str | int | None], class_names: Sequence[str]) -> list[int | None]:
    """The index of each name in ``class_names``; numbers and None stay.

    Raises:
        ValueError: a name is not there; with the nearest.
    """
    names = list(names)
    for name in names:
        if isinstance(name, str) and name not in class_names:
            raise unknown_name("class", name, class_names)
    return [list(class_names).index(name) if isinstance(name, str) else name for name in names]


def _complete_settings(settings: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """A teacher's settings, with the values that the config leaves open (None) from the metadata of its weights.

    Raises:
        ValueError: neither the config nor the metadata tells how to build the network.
    """
    metadata = source_settings(weights)
    defaults = {}
    if "normalization" in metadata:
        defaults["normalization"] = Normalization.of(metadata["normalization"])
    if settings["backbone"] is None:
        if "source" in metadata.get("network", {}):
            own = ", ".join(f"{name}={value!r}" for name, value in metadata["network"].items() if value is not None)
            raise ValueError(f"{weights.source} holds a network of another library: add {own} to teacher")
        if "network" not in metadata:
            raise ValueError(
                f"{weights.source} does not say how its network is built: give backbone, head and, where they are not "
                f"the head's own, width and output_stride"
            )
        defaults = {name: metadata["network"].get(name) for name in NETWORK if name != "normalization"} | defaults
    return {name: defaults.get(name) if value is None else value for name, value in settings.items()}


def build_teacher_cache(
    config: Experiment, source: str, stream: JointStream, teacher: Teacher | None, world: World
) -> TeacherCache | None:
    """The folder ``teacher.cache`` for the teacher's outputs on the stream.

    None where the config names no such folder, and for a teacher with random weights.

    Raises:
        ConfigError: ``teacher.cache_taps`` names an unknown tap, or as ``TeacherCache``.
    """
    if teacher is None or teacher.loaded is None or config.teacher.cache is None:
        return None
    spec, taps = teacher.spec, {}
    with config_errors(source, "teacher.cache_taps"):
        for name in config.teacher.cache_taps:
            if name not in spec.taps:
                raise unknown_name("tap", name, spec.taps)
            taps[name] = spec.taps[name]
    if spec.num_classes is not None:
        taps = {"logits": Tap(spec.num_classes, spec.logit_stride or spec.taps["head"].stride), **taps}
    shapes = {
        name: (tap.channels, *(-(-side // tap.stride) for side in config.data.crop_size)) for name, tap in taps.items()
    }
    elsewhere = {"root", "unlabelled_root", "packed", "workers", "val_list", "test_list", "on_bad_sample"}
    pools = [each.dataset for each in stream.streams]
    samples = json.dumps([describe_sample(*sample) for pool in pools for sample in pool.samples])
    # Instead of the config's names.
    found = {"weights": teacher.loaded.digest(), "normalization": teacher.network.normalization}
    facts = {
        "teacher": {**config.teacher.model_dump(exclude={"cache", "cache_taps", "shard"}), **found},
        "data": {**config.data.model_dump(mode="json", exclude=elsewhere), "seed": stream.streams[0].seed},
        "samples": hashlib.sha256(samples.encode()).hexdigest(),
        "class_names": pools[0].samples[0][0].class_names,
        "precision": config.train.precision,
    }
    dtype = config.train.autocast_dtype or torch.float32
    with config_errors(source, "teacher.cache"):
        return TeacherCache(config.teacher.cache, facts, stream.period, shapes, dtype, world)
