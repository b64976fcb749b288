"""The whole configuration: every section, key, type, default and bound. Unknown keys are errors.

A config file is Python (see ``configs/demo/hmkd.py``). ``utils.config.load_config`` reads it and validates it with
``Experiment``. A dataset's and a distillation method's keys are the arguments of its constructor, so adding one
needs no change in this file.

The comment at a key, above it or on its line, is the key's description in ``docs/config.md``
(``scripts/document_config.py`` writes it).
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from configs.rules import check_sections
from datasets import DATASETS
from datasets.mixing import Domain, Kind
from losses import METHODS
from models import HEADS, NORMALIZATIONS, TRAINED, Normalization, split_source
from models.inference import LARGEST_SCALE
from utils.config import Component, Section, one_of

Positive = Annotated[int, Field(gt=0, lt=2**63)]  # fits 64 bits, as tensors and generators need
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the seeds that are computed from it fit 64 bits
Side = Annotated[int, Field(gt=0, le=2**16)]  # in pixels
Size = tuple[Side, Side]  # height, width
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean
Weight = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
FilePath = Annotated[str, AfterValidator(os.path.expanduser)]  # '~' is the home folder
Precision = Literal["fp32", "bf16", "fp16"]


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype of mixed precision; None: float32 only."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class DataSection(Component):
    """One dataset and its augmentation, and the options of the dataset's constructor."""

    registry = DATASETS
    passed = frozenset({"root", "list_file"})

    type: str  # Kind of dataset.
    root: FilePath  # Folder of the dataset.
    # Training list, relative to root or absolute. None: no image has a label (then set train.batch_size=0).
    train_list: FilePath | None = "train.txt"
    val_list: FilePath = "val.txt"  # Validation list.
    test_list: FilePath | None = None  # Test list. None: there is no test set.
    # Images without labels, for the loss terms between teacher and student: a list file (its labels are not read), or a
    # pattern under unlabelled_root such as 'video/**/*.jpg'. Needs train.unlabelled_batch.
    unlabelled: FilePath | None = None
    unlabelled_root: FilePath | None = None  # Folder of these images. None: root.
    # Share of the training list whose labels are used, at least one image; whole videos (datasets/sequences.py) are
    # chosen. The labels of the other images are never read; they are unlabelled images.
    labelled_fraction: Share = 1.0
    split_seed: Seed = 0  # Seed that chooses the labelled images. It does not depend on train.seed.
    packed: FilePath | None = None  # Folder that scripts/pack_dataset.py wrote. None: image and label files are read.
    crop_size: Size  # Height and width of the training crop.
    # Smallest and largest factor of random resizing: 0 < smallest <= largest.
    scale_range: tuple[float, float] = (0.5, 2.0)
    # A crop is drawn again, at most ten times, while one class covers more than this share of it.
    cat_max_ratio: Share = 1.0
    flip: bool = True  # Mirror half of the crops.
    # Random brightness, contrast, saturation and hue; 'strong': also random greyscale and blur.
    photometric: bool | Literal["strong"] = False
    # Paste a part of another image of the micro-batch: a rectangle ('cutmix'), or the pixels of half of its classes
    # ('classmix'; unlabelled images use the teacher's predicted classes, which costs another forward pass of it).
    mixing: Kind | None = None
    mixing_probability: Share = 0.5  # Probability that an image is mixed.
    mixing_domain: Domain = "unlabelled"  # Which images are mixed.
    # The values (low, high) of black and white in images with 16 bits per channel, for example (0, 4095) for 12 bits;
    # values outside are clipped. None: such images are errors.
    image_range: tuple[float, float] | None = None
    workers: Count = 4  # Data loader workers of each rank. 0: the training process loads the data.
    seed: Seed | None = None  # Seed of order and augmentation. None: train.seed.
    # After this many epochs the same augmented samples repeat in the same order, so that the teacher's outputs can be
    # cached (teacher.cache). None: augmented samples never repeat.
    distinct_epochs: Positive | None = None
    # When a training sample cannot be read: stop, or use the next one and report it. Validation always stops.
    on_bad_sample: Literal["error", "skip"] = "error"

    @model_validator(mode="after")
    def _check(self) -> "DataSection":
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range is {self.scale_range}; expected 0 < low <= high")
        if self.image_range is not None and not self.image_range[0] < self.image_range[1]:
            raise ValueError(f"image_range is {self.image_range}; expected (low, high) with low < high")
        if self.labelled_fraction < 1 and self.train_list is None:
            raise ValueError("labelled_fraction is a share of train_list, which is None")
        return self

    @property
    def ids_by_default(self) -> bool:
        """Whether the dataset has tables for its labels and the config gives none."""
        options = self.options
        return options.get("id_table", 0) is None and options.get("color_table", 0) is None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``datasets.build_dataset``, except the list file."""
        own = self.model_dump(exclude=set(DataSection.model_fields))
        return {"type": self.type, "root": self.root, "image_range": self.image_range, **own}

    @property
    def transform(self) -> dict[str, Any]:
        """Arguments of ``datasets.TrainTransform``."""
        names = ("crop_size", "scale_range", "cat_max_ratio", "flip", "photometric")
        return {name: getattr(self, name) for name in names}


class MethodSection(Component):
    """One distillation method, with the arguments of its constructor."""

    registry = METHODS
    passed = frozenset({"student", "teacher"})

    type: str  # The distillation method.


class SeveralMethods(Section):
    """Distillation by several methods at once. Their terms are added."""

    # One section for each method, each type once.
    methods: Annotated[tuple[SerializeAsAny[MethodSection], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "SeveralMethods":
        types = [method.type for method in self.methods]
        if len(set(types)) < len(types):
            raise ValueError(f"methods holds {', '.join(types)}; expected each type once")
        return self


class DistillSection(MethodSection):
    """One method, or ``SeveralMethods``."""

    @classmethod
    def variant(cls, values: Any) -> type[Section]:
        several = isinstance(values, Mapping) and "methods" in values
        return SeveralMethods if several else MethodSection.variant(values)


class WeightSchedule(Section):
    """A factor on the weight of one loss term. It changes from ``start`` to ``end`` during ``iters`` steps."""

    # How the factor changes: linearly, along half a cosine wave, or at once at the end.
    type: Literal["linear", "cosine", "step"]
    iters: Positive  # Duration of the change in steps.
    start: Weight = 0.0  # Factor before the change.
    end: Weight = 1.0  # Factor after the change.
    begin: Count = 0  # Step at which the change begins.


class Statistics(Section):
    """How images are normalised: (image * scale / 255 - mean) / std."""

    mean: tuple[float, float, float]  # Of each channel, in the channel order of the network.
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]  # Of each channel.
    bgr: bool = False  # The network's channel order is blue, green, red.
    scale: PositiveFloat = 255.0  # The value of white, before the mean is subtracted: 1.0 if mean and std are in 0..1.

    @property
    def in_pixels(self) -> Normalization:
        """For images in 0..255."""
        mean, std = (tuple(255 / self.scale * each for each in values) for values in (self.mean, self.std))
        return Normalization(mean, std, self.bgr)


# The keys of a network that go with backbone and head, and those that go with source.
OF_BACKBONE = ("backbone", "head", "output_stride", "width", "dropout", "drop_path", "aux")
OF_SOURCE = ("arguments", "taps", "output", "pad_to", "prefix_tokens", "family")


class Network(Section):
    """A segmentation network: a backbone and a head, or the source of another library (docs/teachers.md)."""

    # mit_b0 to mit_b5, resnet18, resnet101, any other timm network with four stages, a plain ViT of timm, or your own.
    backbone: str | None = None
    head: Annotated[str, one_of(HEADS, "head")] | None = None  # The head; every head fits every backbone.
    # Stride of the last stage; 8 and 16 need a backbone that supports dilation. None: the head's default.
    output_stride: Literal[8, 16, 32] | None = None
    width: Positive | None = None  # Channels of the head. None: the head's default.
    dropout: Fraction = 0.1  # Dropout probability in the heads.
    drop_path: Fraction = 0.0  # Probability of stochastic depth in the backbone.
    # Mean, std and channel order of the input images; with source also dict(mean, std, bgr=False, scale=255.0), with
    # mean and std for images in 0..scale.
    normalization: Annotated[str, one_of(NORMALIZATIONS, "normalization")] | Statistics = "imagenet"
    # A network of another library, instead of backbone and head: 'smp:ARCHITECTURE', 'python:package.module:function';
    # for a teacher also 'transformers:FOLDER_OR_HUB_NAME', 'smp:FOLDER', 'torchvision:NAME', 'timm:NAME' (features).
    source: Annotated[str, AfterValidator(lambda source: split_source(source) and source)] | None = None
    arguments: dict[str, Any] | None = None  # Keyword arguments for the source's constructor or function.
    # Name of each tap (feature map) of the source -> 'module.path', or 'module.path:output' with a key, index or
    # attribute of what the module returns; B C h w maps or B N C tokens.
    taps: dict[str, str] | None = None
    # Key, index or attribute of the logits in what the source returns. False: it has features only.
    output: str | int | Literal[False] | None = None
    pad_to: Positive | None = None  # Images for the source are padded to multiples of this number of pixels.
    prefix_tokens: Count | None = None  # Number of class and register tokens before the patch tokens, for token taps.
    family: Literal["cnn", "transformer"] | None = None  # Family of the source's encoder.

    @property
    def title(self) -> str | None:
        """What the network is, for reports; None: its weights know."""
        return self.source or (self.backbone and f"{self.head} {self.backbone}")

    @property
    def wrapped(self) -> dict[str, Any]:
        """Arguments of ``models.build_wrapped``."""
        given = self.normalization
        return {
            **self.model_dump(include={"source", *OF_SOURCE}),
            "normalization": given.in_pixels if isinstance(given, Statistics) else given and NORMALIZATIONS[given],
        }

    @model_validator(mode="after")
    def _check_source(self) -> "Network":
        fields = type(self).model_fields
        for key in OF_SOURCE if self.source is None else OF_BACKBONE:
            if key in fields and getattr(self, key) != fields[key].default:
                raise ValueError(
                    f"{key} is set and source is {self.source!r}: set {key}={fields[key].default}, or "
                    f"{'give a source' if self.source is None else 'source=None'}"
                )
        return self


class Student(Network):
    """The network that is trained."""

    aux: bool = False  # Add an auxiliary FCN head on stage 3, weighted by train.aux_weight.
    # Backbone weights: a file or folder, 'timm', 'package:NAME' or 'hf:NAME' (pretrained/README.md). None: random.
    pretrained: FilePath | None = None
    # Weights of a whole segmentation network to fine-tune, instead of pretrained: a file or folder, or 'hf:NAME'. If it
    # has other classes than the data, the last layer of its head is not loaded and starts from random weights.
    init_from: FilePath | None = None
    # Parts that are not trained, such as ('backbone',) or ('backbone.net.layer1',): their weights and running
    # statistics do not change, and they have no dropout.
    freeze: Annotated[tuple[str, ...], BeforeValidator(lambda parts: (parts,) if type(parts) is str else parts)] = ()

    @property
    def network(self) -> dict[str, Any]:
        """How it is built, for the metadata of its file; with ``normalization`` where it has a name."""
        names = (*OF_BACKBONE, "normalization") if self.source is None else ("source", *OF_SOURCE)
        return self.model_dump(include=set(names))

    @model_validator(mode="after")
    def _check(self) -> "Student":
        if self.source is None and None in (self.backbone, self.head):
            raise ValueError(f"backbone is {self.backbone!r} and head is {self.head!r}: give both, or a source")
        if self.source is not None and split_source(self.source)[0] not in TRAINED:
            raise ValueError(
                f"source is {self.source!r}, and the sources of students are {', '.join(TRAINED)}: with python: name a "
                "function that builds this network, or give backbone and head"
            )
        if self.source is None and isinstance(self.normalization, Statistics):
            raise ValueError(f"normalization is a dict, which only a source takes: choose {', '.join(NORMALIZATIONS)}")
        if self.pretrained is not None and self.init_from is not None:
            raise ValueError(
                f"pretrained is {self.pretrained!r} and init_from is {self.init_from!r}, which holds a backbone too: "
                "set one of them to None"
            )
        return self


class Teacher(Network):
    """The frozen network: backbone and head, or the source of another library.

    A key that is None has the value in the metadata of the weights file, or that of the library.
    """

    # As for the student. None: that of the metadata, otherwise 'imagenet'.
    normalization: Annotated[str, one_of(NORMALIZATIONS, "normalization")] | Statistics | None = None
    # Weights of the whole segmentation network: a file or folder, or 'hf:NAME'. With source: a file, or None if the
    # source has them. 'ema': the teacher is the EMA of the student's own weights (train.ema), for self-training.
    weights: FilePath | None = None
    # Factor on height and width of the teacher's input, maps and cost. Above 1 it sees finer detail than the student.
    scale: Annotated[float, Field(gt=0, le=LARGEST_SCALE)] = 1.0
    # If the teacher has other classes than the data: for each of its classes the data's class (name or number), or None
    # to ignore it. With source also a dict: teacher's class (name or number) -> data's class, only for those used.
    class_map: tuple[str | int | None, ...] | dict[str | int, str | int | None] | None = None
    # Folder for the teacher's cached outputs on the training samples, for this run and for other runs with the same
    # data section. Needs data.distinct_epochs.
    cache: FilePath | None = None
    cache_taps: tuple[str, ...] = ()  # Taps to cache besides the logits: those that the methods use.
    # Split the weights over all ranks, for a teacher that is too large for one device. The results stay the same.
    shard: bool = False

    @property
    def origin(self) -> str:
        """Where its weights are from, for reports."""
        return self.weights or self.source

    @property
    def wrapped(self) -> dict[str, Any]:
        """Arguments of ``models.build_wrapped``."""
        return {**super().wrapped, "weights": self.weights}

    @model_validator(mode="after")
    def _check(self) -> "Teacher":
        if self.source is not None:
            return self
        if self.weights is None:
            raise ValueError("weights is missing; only a source may have its own")
        if isinstance(self.class_map, dict):
            raise ValueError("class_map is a dict, which only a source takes; give one entry for each class instead")
        if (self.backbone is None) != (self.head is None):
            raise ValueError("give both backbone and head, or neither if the metadata of the weights has them")
        return self


class Optimizer(Section):
    """SGD or AdamW."""

    type: Literal["sgd", "adamw"]  # The optimizer.
    lr: PositiveFloat  # Learning rate of the backbone, before the schedule.
    head_lr_mult: PositiveFloat = 1.0  # Factor on the learning rate of all parameters outside the backbone.
    momentum: Fraction = 0.9  # Momentum of SGD.
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # Betas of AdamW.
    weight_decay: Weight = 1e-4  # Weight decay.
    decay_norm_bias: bool = True  # False: no weight decay on normalisation layers and biases.


class Schedule(Section):
    """The number of steps, and the learning rate at each of them."""

    # Decay to 0: with x the completed fraction of the steps, the factor on the learning rate is (1 - x)^power for
    # 'poly', and (1 + cos(pi x)) / 2 for 'cosine'.
    type: Literal["poly", "cosine"] = "poly"
    max_iters: Positive | None = None  # Number of training steps (iterations). None: computed from epochs.
    # Passes over the labelled images, instead of max_iters: epochs * images / train.batch_size steps, rounded up. The
    # resolved config has max_iters.
    epochs: Positive | None = None
    power: PositiveFloat = 0.9  # Exponent of the decay of 'poly'; 'cosine' has none.
    warmup_iters: Count = 0  # Steps of linear warm-up; at most max_iters.
    warmup_ratio: Share = 1e-6  # Factor on the learning rate at step 0 of the warm-up.
    # Step at which the schedule restarts, over the remaining steps; the steps before it have their own schedule. To
    # train a finished run longer: the old max_iters (docs/training.md). None: one schedule.
    restart_at: Positive | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``engine.optim.learning_rate_factor``, except the step."""
        return self.model_dump(exclude={"epochs"})

    @model_validator(mode="after")
    def _check(self) -> "Schedule":
        if (self.max_iters is None) == (self.epochs is None):
            raise ValueError(
                f"max_iters is {self.max_iters} and epochs is {self.epochs}; expected a number for one of them, and "
                "None for the other"
            )
        if self.max_iters is None:
            return self
        if self.warmup_iters > self.max_iters:
            raise ValueError(f"warmup_iters {self.warmup_iters} is more than max_iters {self.max_iters}")
        if self.restart_at is not None and self.restart_at >= self.max_iters:
            raise ValueError(f"restart_at is {self.restart_at}; expected less than max_iters {self.max_iters}")
        return self


class Train(Section):
    """How a step is computed."""

    # Labelled images per step, over all ranks and micro-batches. 0 if and only if data.train_list is None.
    batch_size: Count
    unlabelled_batch: Count = 0  # Unlabelled images per step, in addition (docs/training.md).
    accumulate: Positive = 1  # Micro-batches per step and rank (gradient accumulation), to save memory.
    precision: Precision = "bf16"  # Number format of the networks' forward and backward pass.
    channels_last: bool = True  # Memory layout of images and weights; usually faster.
    grad_clip: PositiveFloat | None = None  # Largest gradient norm. None: no clipping.
    aux_weight: Weight = 0.4  # Loss weight of the auxiliary head, if student.aux is True.
    # Weight of each class in the cross-entropy. 'auto': 1 / ln(1.02 + share), where share is the class's share of the
    # labelled pixels of the training set. None: all 1.
    class_weights: tuple[Weight, ...] | Literal["auto"] | None = None
    # Online hard example mining in the cross-entropy, (p, share): only pixels whose true class has a probability of at
    # most p, but at least this share of all pixels.
    ohem: tuple[OpenFraction, Share] | None = None
    # Largest decay of an exponential moving average (EMA) of the student's weights (0.999 is usual). The EMA is
    # validated too, and is the best student if its mIoU is higher. None: no EMA.
    ema: Decay | None = None
    verify_teacher: bool = True  # Evaluate the teacher on the validation set before the first step.
    allow_weak_teacher: bool = False  # Train even if this evaluation shows that the teacher is no better than chance.
    # Use torch.compile for the networks' repeated blocks. The first step takes long, and results differ by rounding;
    # no gain was measured yet.
    compile: bool = False
    seed: Seed = 0  # Seed of initial weights, dropout and (unless data.seed is set) the data.
    deterministic: bool = False  # Make GPU results equal bit for bit from run to run; slower.
    timeout: PositiveFloat = 1800.0  # Seconds that a rank waits for another rank or for data.

    @property
    def images(self) -> int:
        """Images in one step."""
        return self.batch_size + self.unlabelled_batch

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return autocast_dtype(self.precision)


class Eval(Section):
    """How the validation and test sets are evaluated."""

    interval: Positive = 800  # Steps between two validations.
    mode: Literal["whole", "slide"] = "whole"  # The whole image at once, or sliding windows.
    crop_size: Size | None = None  # Height and width of the window; mode='slide' needs it.
    stride: Size | None = None  # Vertical and horizontal step of the window, at most crop_size; mode='slide' needs it.
    # Factors on the image size, for multi-scale evaluation; the class probabilities are averaged.
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=LARGEST_SCALE)], ...], Field(min_length=1)] = (1.0,)
    flip: bool = False  # Average with the mirrored image.
    # Number format of the evaluated network; half precision changes the mIoU by some hundredths of a point. None:
    # train.precision. A training run always evaluates its teacher in train.precision.
    precision: Precision | None = "fp32"

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
    """When checkpoints are written."""

    interval: Positive = 800  # Steps between two checkpoints.
    keep: Count = 3  # Number of step_*.pt files to keep.
    # When a checkpoint or log entry cannot be written, for example on a full disk: stop, or print it and continue.
    on_save_error: Literal["stop", "continue"] = "stop"


class Log(Section):
    """What is logged."""

    interval: Positive = 50  # Steps between two log entries.
    # Steps between two measurements of each term's gradient norm, which cost one backward pass per term. 0: never.
    grad_norm_interval: Count = 0
    panel_images: Count = 4  # Images in the panels of a training batch and of the validations.
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)  # Where the run is logged.


class Experiment(Section):
    """One experiment, for ``train_kd.py``, ``eval.py`` and the scripts."""

    # Your modules that register components; they are imported before the config is validated (docs/extend.md).
    custom_imports: tuple[str, ...] = ()
    data: SerializeAsAny[DataSection]  # The dataset.
    student: Student  # The network that is trained.
    teacher: Teacher | None = None  # The frozen network. None: train the student alone.
    distill: SerializeAsAny[DistillSection] | None = None  # The distillation method, or several; needs a teacher.
    curriculum: dict[str, WeightSchedule] = {}  # Factors on the weights of loss terms, by the names that the log shows.
    optimizer: Optimizer  # The optimizer.
    schedule: Schedule  # The learning rate schedule.
    train: Train  # The training step.
    eval: Eval = Eval()  # Evaluation.
    checkpoint: Checkpoint = Checkpoint()  # Checkpoints.
    log: Log = Log()  # Logging.
    protocol: str | None = None  # Name of the published recipe, written into every result.

    @property
    def self_taught(self) -> bool:
        """Whether the teacher is the average of the student's own weights."""
        return self.teacher is not None and self.teacher.weights == "ema"

    @property
    def methods(self) -> tuple[MethodSection, ...]:
        """The distillation methods; none if the student is trained alone."""
        if self.distill is None:
            return ()
        return self.distill.methods if isinstance(self.distill, SeveralMethods) else (self.distill,)

    @property
    def data_seed(self) -> int:
        """Of order, augmentation and mixing."""
        return self.train.seed if self.data.seed is None else self.data.seed

    @property
    def eval_precision(self) -> str:
        return self.eval.precision or self.train.precision

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        check_sections(self)
        return self
