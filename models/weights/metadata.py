"""The metadata of a weights file, checked before anything is built from it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator


def _printable(text: str) -> str:
    if not text.isprintable():  # it could control a terminal
        raise ValueError("expected printable characters")
    return text


Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
PositiveNumber = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Level = Annotated[int, Strict(), Field(ge=0, le=255)]
Name = Annotated[str, Strict(), Field(max_length=100), AfterValidator(_printable)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Network(_Entry):
    """Arguments of ``build_model``. The limit of ``width`` keeps a damaged file from filling the memory."""

    backbone: str
    head: str
    output_stride: Literal[8, 16, 32] | None = None
    width: Annotated[int, Strict(), Field(gt=0, le=2**16)] | None = None
    dropout: Share = 0.0
    drop_path: Share = 0.0
    normalization: str = "imagenet"
    aux: Annotated[bool, Strict()] = False


class _Source(_Entry):
    """Arguments of ``build_wrapped``."""

    source: Name
    arguments: dict[str, Any] | None = None
    taps: dict[str, str] | None = None
    output: str | int | bool | None = None
    pad_to: Annotated[int, Strict(), Field(gt=0, le=2**16)] | None = None
    prefix_tokens: Annotated[int, Strict(), Field(ge=0)] | None = None
    family: Literal["cnn", "transformer"] | None = None


class _Normalization(_Entry):
    mean: tuple[Number, Number, Number]
    std: tuple[PositiveNumber, PositiveNumber, PositiveNumber]
    bgr: Annotated[bool, Strict()]


class _Tap(_Entry):
    channels: int
    stride: int


class _Config(BaseModel):
    eval: dict[str, Any] = {}
    train: dict[str, Any] = {}


class _Metadata(BaseModel):
    """Every entry may be absent. At most 254 classes: labels are uint8, of which two values are no class."""

    network: _Network = None
    normalization: _Normalization = None
    taps: dict[str, _Tap] = None
    class_names: Annotated[list[Name], Field(min_length=1, max_length=254)] = None
    palette: Annotated[list[tuple[Level, Level, Level]], Field(min_length=1)] = None
    config: _Config = None
    scale: PositiveNumber = None

    @model_validator(mode="after")
    def _one_color_a_class(self) -> "_Metadata":
        if None not in (self.class_names, self.palette) and len(self.class_names) != len(self.palette):
            raise ValueError(f"{len(self.class_names)} class_names and {len(self.palette)} colours in the palette")
        return self


class _MetadataOfSource(_Metadata):
    network: _Source
    normalization: _Normalization


def check_metadata(metadata: Any, source: str) -> None:
    """Checks what this code reads of a file's metadata; other entries are left alone.

    Raises:
        ValueError: an entry is not of the form that this code writes; names ``source``, the entry and what was found.
    """
    try:
        network = metadata.get("network") if isinstance(metadata, dict) else None
        of_source = isinstance(network, dict) and "source" in network
        (_MetadataOfSource if of_source else _Metadata).model_validate(metadata)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, found = ".".join(map(str, first["loc"])), repr(first["input"])
        found = found if len(found) <= 80 else f"{found[:77]}..."
        raise ValueError(f"{source}: its metadata is damaged: {key or 'metadata'} is {found}: {first['msg']}") from None
