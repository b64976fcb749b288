"""``smp:FOLDER`` or ``smp:Unet``: a network of segmentation_models_pytorch, with any of its encoders."""

from pathlib import Path
from typing import Any

from models.adapters.loading import import_extra, load_strictly, need_weights
from models.adapters.wrapped import SOURCES, Source
from models.weights.hugging_face import read_json
from models.weights.sources import read_weights
from utils.names import unknown_name

FILES = ("model.safetensors", "pytorch_model.bin")


@SOURCES.register("smp")
def from_smp(name: str, weights: str | None, arguments: dict[str, Any]) -> Source:
    """A folder that ``save_pretrained`` wrote, or an architecture with arguments and a file of weights.

    Raises:
        FileNotFoundError: the folder or file does not exist or lacks a file.
        ValueError: there is no such architecture, it cannot be built with the arguments, or the file does not fit.
    """
    smp = import_extra("segmentation_models_pytorch", "smp")
    folder, architecture = Path(name).expanduser(), name
    if folder.is_dir():
        settings = read_json(folder / "config.json")
        architecture = str(settings.pop("_model_class", None))
        arguments = {key: value for key, value in settings.items() if not key.startswith("_")} | arguments
        if weights is None:
            found = [folder / file for file in FILES if (folder / file).is_file()]
            if not found:
                raise FileNotFoundError(f"folder {folder} has none of {', '.join(FILES)}")
            weights = str(found[0])
    known = {each.__name__: each for each in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture not in known:
        raise unknown_name("folder, or architecture of segmentation_models_pytorch,", architecture, known)
    read = need_weights(f"smp:{name}", weights) if not folder.is_dir() else read_weights(weights)
    last = read.tensors.get("segmentation_head.0.weight")
    classes = {} if last is None else {"classes": len(last)}
    try:
        module = known[architecture](**{**classes, **arguments, "encoder_weights": None})
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"smp:{name} cannot be built with {arguments}: {error}") from error
    report = load_strictly(module, read, "smp")
    channels = module.encoder.out_channels  # 0 where an encoder has no such stage
    stages = [f"encoder:{stage}" for stage in range(-4, 0) if len(channels) >= -stage and channels[stage]]
    taps = {f"stage{i}": place for i, place in enumerate(stages, 1)} | {"head": "decoder"}
    return Source(module, report, taps=taps, encoder=module.encoder)
