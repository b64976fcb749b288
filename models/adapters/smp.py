"""``smp:FOLDER`` or ``smp:Unet``: a network of segmentation_models_pytorch, with any of its encoders."""

from pathlib import Path
from typing import Any

from torch import nn

from models.adapters.loading import load_strictly, need_weights
from models.adapters.wrapped import SOURCES, Source
from models.backbones import timm_names
from models.extras import import_extra
from models.weights.encoders import take_encoder
from models.weights.hugging_face import HUGGING_FACE_FILES, read_json
from models.weights.load import LoadReport
from models.weights.tensors import Weights
from utils.names import unknown_name

CLASSIFIERS = ("fc.", "classifier.", "head.", "last_linear.")  # of the encoders that are not timm's


@SOURCES.register("smp")
def from_smp(name: str, weights: str | None, arguments: dict[str, Any], num_classes: int | None = None) -> Source:
    """A folder that ``save_pretrained`` wrote, or an architecture with arguments and a file of weights.

    With ``num_classes`` an architecture with random weights. smp itself is never asked to download weights.

    Raises:
        FileNotFoundError: the folder or file does not exist or lacks a file.
        ValueError: there is no such architecture, it cannot be built with the arguments, or the file does not fit.
    """
    smp = import_extra("segmentation_models_pytorch", "smp")
    folder, architecture, read = Path(name).expanduser(), name, None
    if folder.is_dir() and num_classes is None:
        settings = read_json(folder / "config.json")
        architecture = str(settings.pop("_model_class", None))
        arguments = {key: value for key, value in settings.items() if not key.startswith("_")} | arguments
        if weights is None:
            found = [folder / file for file in HUGGING_FACE_FILES if (folder / file).is_file()]
            if not found:
                raise FileNotFoundError(f"folder {folder} has none of {', '.join(HUGGING_FACE_FILES)}")
            weights = str(found[0])
    known = {each.__name__: each for each in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture not in known:
        raise unknown_name("folder, or architecture of segmentation_models_pytorch,", architecture, known)
    if num_classes is None:
        read = need_weights(f"smp:{name}", weights)
        last = read.tensors.get("segmentation_head.0.weight")
        num_classes = None if last is None else len(last)
    classes = {} if num_classes is None else {"classes": num_classes}
    try:
        module = known[architecture](**{**classes, **arguments, "encoder_weights": None})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"smp:{name} cannot be built with {arguments}: {error}") from error
    report = None if read is None else load_strictly(module, read, "smp")
    channels = module.encoder.out_channels  # 0 where an encoder has no such stage
    stages = [f"encoder:{stage}" for stage in range(-4, 0) if len(channels) >= -stage and channels[stage]]
    taps = {f"stage{i}": place for i, place in enumerate(stages, 1)} | {"head": "decoder"}
    return Source(module, report, taps=taps, encoder="encoder", load_encoder=_load_encoder)


def _load_encoder(encoder: nn.Module, weights: Weights) -> LoadReport:
    """Loads the encoder of a network of smp, or one as its own library names it, without its classifier."""
    tensors, rest = take_encoder(weights.tensors)
    skip = CLASSIFIERS
    if hasattr(encoder, "name"):  # 'tu-...': timm's
        names = timm_names(encoder.name, encoder.state_dict())
        flat = {key.removeprefix("model.").replace(".", "_"): key for key in encoder.state_dict()}
        tensors = {flat.get(key.replace(".", "_"), key): tensor for key, tensor in tensors.items()}
        skip = tuple(key for key, name in names.items() if name is None)
    report = load_strictly(encoder, weights._replace(tensors=tensors), "smp", skip)
    return report._replace(part="backbone", skipped=(*report.skipped, *rest))
