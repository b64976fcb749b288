"""The configuration, whole: every section, key, type, default and bound. Unknown keys are forbidden.

A config file is Python (see ``configs/demo/hmkd.py``); ``utils.config.load_config`` reads it and validates it here.
The options of a dataset and of a distillation method are those of its constructor, so that adding one
needs no change in this file.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)

from datasets import DATASETS
from losses import METHODS
from models import HEADS, NORMALIZATIONS
from models.inference import LARGEST_SCALE
from utils.names import unknown_name

Positive = Annotated[int, Field(gt=0, lt=2**63)]  # what 64 bits hold, as tensors and generators do
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what is derived of it for a step fits 64 bits
Side = Annotated[int, Field(gt=0, le=2**16)]  # in pixels
Size = tuple[Side, Side]  # height, width
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean


def one_of(choices: Mapping[str, Any], kind: str) -> AfterValidator:
    """A string that must be a key of ``choices``; the error names the nearest one."""

    def check(name: str) -> str:
        if name not in choices:
            raise unknown_name(kind, name, choices)
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """Strict types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def variants(base: type[BaseModel], table: Mapping[str, Callable], given_elsewhere: set[str]) -> Any:
    """``base`` extended, for each component of ``table``, by the keyword arguments of its constructor.

    Names, annotations and defaults are the component's own; ``type`` says which variant a section is.
    """
    models: list[type[BaseModel]] = []
    for key, component in table.items():
        fields: dict[str, Any] = {"type": (Literal[key], ...)}
        for name, parameter in inspect.signature(component).parameters.items():
            if name not in given_elsewhere:
                default = ... if parameter.default is parameter.empty else parameter.default
                fields[name] = (parameter.annotation, default)
        models.append(create_model(component.__name__, __base__=base, **fields))
    # A union of one is no union: only from two variants on does ``type`` discriminate.
    return models[0] if len(models) == 1 else Annotated[reduce(or_, models), Field(discriminator="type")]


class DataSection(Section):
    """One dataset and how it is augmented; the options of the dataset's own constructor are added to these."""

    root: str
    train_list: str = "train.txt"
    val_list: str = "val.txt"
    test_list: str | None = None
    packed: str | None = None  # folder that scripts/pack_dataset.py wrote; None: the files themselves are read
    crop_size: Size  # of the training crop
    scale_range: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: bool = True
    photometric: bool = False
    workers: Count = 4
    seed: Seed | None = None  # of order and augmentation; None: train.seed
    # After so many passes over the data the same samples come again, order and augmentation alike: fewer different
    # augmentations, for outputs of the teacher that can be kept (teacher.cache). None: the stream never repeats.
    distinct_epochs: Positive | None = None
    # A training sample that cannot be read: stop, or take the next of the epoch's order instead, and say so once.
    # Validation and evaluation always stop: their figures are those of the whole set.
    on_bad_sample: Literal["error", "skip"] = "error"

    @model_validator(mode="after")
    def _check(self) -> "DataSection":
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range is {self.scale_range}; expected 0 < low <= high")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``datasets.build_dataset`` beside the list file."""
        return {
            "type": self.type,
            "root": self.root,
            **self.model_dump(exclude=set(DataSection.model_fields) | {"type"}),
        }

    @property
    def transform(self) -> dict[str, Any]:
        """Arguments of ``datasets.TrainTransform``."""
        names = ("crop_size", "scale_range", "cat_max_ratio", "flip", "photometric")
        return {name: getattr(self, name) for name in names}


Data = variants(DataSection, DATASETS, {"root", "list_file"})
OneMethod = variants(Section, METHODS, {"student", "teacher"})


class SeveralMethods(Section):
    """Distillation by several methods at once; their terms add up."""

    methods: tuple[OneMethod, ...]

    @model_validator(mode="after")
    def _check(self) -> "SeveralMethods":
        types = [method.type for method in self.methods]
        if not types or len(set(types)) < len(types):
            raise ValueError(f"methods holds {', '.join(types) or 'nothing'}; expected one or more, each type once")
        return self


def _kind_of_distill(value: Any) -> str:
    several = "methods" in value if isinstance(value, Mapping) else isinstance(value, SeveralMethods)
    return "<several>" if several else "<one>"


Distill = Annotated[
    Annotated[OneMethod, Tag("<one>")] | Annotated[SeveralMethods, Tag("<several>")], Discriminator(_kind_of_distill)
]


class WeightSchedule(Section):
    """A factor on a loss term's weight: from ``start`` to ``end`` in ``iters`` steps from step ``begin`` on."""

    type: Literal["linear", "cosine", "step"]
    iters: Positive
    start: Annotated[float, Field(ge=0)] = 0.0
    end: Annotated[float, Field(ge=0)] = 1.0
    begin: Count = 0


class Network(Section):
    """A segmentation network: any backbone under any head that fits its taps."""

    backbone: str  # resnet18, resnet101, mit_b0..b5, or any timm network of four stages
    head: Annotated[str, one_of(HEADS, "head")]
    output_stride: Literal[8, 16, 32] | None = None  # None: the head's own
    width: Positive | None = None  # channels of the head; None: the head's own
    dropout: Fraction = 0.1
    drop_path: Fraction = 0.0
    normalization: Annotated[str, one_of(NORMALIZATIONS, "normalization")] = "imagenet"


class Student(Network):
    aux: bool = False  # auxiliary FCN head on stage 3, weighted by train.aux_weight
    # Backbone weights: a file or folder, 'timm', 'package:NAME' or 'hf:NAME'; see pretrained/README.md.
    pretrained: str | None = None


class Teacher(Network):
    """What is None here is as the file of the weights says, where it says it."""

    backbone: str | None = None
    head: Annotated[str, one_of(HEADS, "head")] | None = None
    normalization: Annotated[str, one_of(NORMALIZATIONS, "normalization")] | None = None
    weights: str  # of a whole segmentation network: a file or folder, or 'hf:NAME'
    # Factor on the sides of the images that it sees: its maps are as much smaller or larger, and its cost with them.
    scale: Annotated[float, Field(gt=0, le=LARGEST_SCALE)] = 1.0
    # Where its classes are not the data's: for each of them the data's class, by name, or None to leave it out.
    class_map: tuple[str | None, ...] | None = None
    # Folder to keep its outputs on the training samples in: what is there is read, by this run and by others of the
    # same data section, and the teacher runs on the rest only. Needs data.distinct_epochs.
    cache: str | None = None
    cache_taps: tuple[str, ...] = ()  # kept beside the logits: those that the methods read
    # Too large for one device: every process holds its part of the weights, and they are gathered block by block in
    # each forward pass. Nothing else changes; a process that is alone holds the whole.
    shard: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Teacher":
        if (self.backbone is None) != (self.head is None):
            raise ValueError("give both backbone and head, or neither where the weights say them")
        return self


class Optimizer(Section):
    type: Literal["sgd", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    head_lr_mult: Annotated[float, Field(gt=0)] = 1.0  # every parameter outside the backbone
    momentum: Fraction = 0.9  # SGD only
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # AdamW only
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_norm_bias: bool = True  # False: no weight decay on norms and biases


class Schedule(Section):
    type: Literal["poly"] = "poly"
    max_iters: Positive
    power: Annotated[float, Field(gt=0)] = 0.9
    warmup_iters: Count = 0
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 1e-6  # lr factor at step 0

    @model_validator(mode="after")
    def _check(self) -> "Schedule":
        if self.warmup_iters > self.max_iters:
            raise ValueError(f"warmup_iters {self.warmup_iters} is more than max_iters {self.max_iters}")
        return self


class Train(Section):
    batch_size: Positive  # global: over all ranks and accumulation steps
    accumulate: Positive = 1
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    channels_last: bool = True
    grad_clip: Annotated[float, Field(gt=0)] | None = None  # maximal gradient norm
    aux_weight: Annotated[float, Field(ge=0)] = 0.4  # of the auxiliary head, where the student has one
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None  # of the cross-entropy, one a class
    # Hard example mining in the cross-entropy: (pixels of at most this probability, but at least this share of them).
    ohem: tuple[float, float] | None = None
    verify_teacher: bool = True  # evaluate the teacher on the validation set before the first step
    allow_weak_teacher: bool = False  # go on though the teacher is no better than chance
    # torch.compile of the networks' repeated blocks in training steps: the first step waits for it, and results differ
    # by rounding. Off: it pays on a GPU alone.
    compile: bool = False
    seed: Seed = 0
    deterministic: bool = False  # GPUs too compute the same bit for bit every time, at some cost in speed
    timeout: Annotated[float, Field(gt=0)] = 1800.0  # seconds that a rank waits for another, or for data

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]


class Eval(Section):
    interval: Positive = 800
    mode: Literal["whole", "slide"] = "whole"
    crop_size: Size | None = None  # window of mode='slide'
    stride: Size | None = None
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=LARGEST_SCALE)], ...], Field(min_length=1)] = (1.0,)
    flip: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Eval":
        if self.mode == "slide":
            if self.crop_size is None or self.stride is None:
                raise ValueError("mode='slide' needs crop_size=(h, w) and stride=(h, w)")
            if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
                raise ValueError(f"stride {self.stride} leaves gaps between windows of crop_size {self.crop_size}")
        return self

    @property
    def protocol(self) -> dict[str, Any]:
        """Arguments of ``engine.evaluation.evaluate``."""
        return {name: getattr(self, name) for name in ("mode", "crop_size", "stride", "scales", "flip")}


class Checkpoint(Section):
    interval: Positive = 800
    keep: Count = 3  # how many step_*.pt stay
    # Where a checkpoint or a log entry cannot be written (a full disk): stop, or say so and go on.
    on_save_error: Literal["stop", "continue"] = "stop"


class Log(Section):
    interval: Positive = 50
    grad_norm_interval: Count = 0  # 0: never; each costs one more backward pass a term
    panel_images: Count = 4  # validation images shown in TensorBoard


class Experiment(Section):
    """One experiment: what ``train_kd.py`` and ``eval.py`` are given."""

    data: Data
    student: Student
    teacher: Teacher | None = None  # None: train the student network alone
    distill: Distill | None = None
    curriculum: dict[str, WeightSchedule] = {}  # by loss term, as the log names them: factors on their weights
    optimizer: Optimizer
    schedule: Schedule
    train: Train
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    protocol: str | None = None  # name of the published recipe, stamped into every result

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        if (self.teacher is None) != (self.distill is None):
            given, missing = ("distill", "teacher") if self.teacher is None else ("teacher", "distill")
            raise ValueError(f"{given} is set but {missing} is None: set both to distil, or neither to train alone")
        if self.student.aux and self.train.aux_weight == 0:
            raise ValueError("student.aux is True but train.aux_weight is 0: the auxiliary head would never learn")
        if self.teacher is not None and self.teacher.cache is not None and self.data.on_bad_sample == "skip":
            raise ValueError(
                "teacher.cache is set and data.on_bad_sample is 'skip': what is kept of a replacement would be "
                "replayed on the sample itself once its file is mended; set one of the two back"
            )
        if self.teacher is not None and self.teacher.cache is not None and self.data.distinct_epochs is None:
            raise ValueError(
                "teacher.cache is set but data.distinct_epochs is None: the stream never repeats, and nothing that is "
                "kept would be read; set data.distinct_epochs=1 or more"
            )
        return self
