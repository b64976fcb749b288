"""``transformers:FOLDER_OR_HUB_NAME``: semantic and universal segmentation networks of Hugging Face."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.adapters.loading import load_strictly, report_own
from models.adapters.wrapped import SOURCES, Source, describe, four_stages
from models.base import Normalization
from models.extras import import_extra
from models.weights.hugging_face import download
from models.weights.load import LoadReport
from models.weights.sources import read_weights
from models.weights.tensors import first_line

# Networks whose position embeddings fit images of config.image_size only.
ONE_SIZE = ("data2vec-vision", "dpt", "eomt")


@SOURCES.register("transformers")
def from_transformers(name: str, weights: str | None, arguments: dict[str, Any]) -> Source:
    """A folder that ``save_pretrained`` wrote, or the name of one on the hub. No code of the folder runs.

    Raises:
        FileNotFoundError: there is no such folder, or it cannot be downloaded.
        ValueError: it asks for code of its own, holds more than tensors or another task, or does not fit its config.
    """
    library = import_extra("transformers", "transformers")
    folder = _find_folder(name)
    for file in sorted(folder.glob("*.json")):
        if '"auto_map"' in json.dumps(json.loads(file.read_text())):  # however it is escaped in the file
            raise ValueError(f"{file} asks for code of its own (auto_map), which is refused")
    try:
        config = library.AutoConfig.from_pretrained(folder, **arguments)
    except Exception as error:  # a damaged config raises one of many types
        raise ValueError(f"transformers:{name}: its config cannot be read: {error}") from error
    universal, kind = type(config) in library.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, config.model_type
    if not universal and type(config) not in library.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        raise ValueError(f"transformers:{name} is a {kind}; expected a network of semantic or universal segmentation")
    auto = library.AutoModelForUniversalSegmentation if universal else library.AutoModelForSemanticSegmentation
    module, report = _load(auto, folder, config, name, weights)
    names = [str(config.id2label[i]).strip() for i in range(config.num_labels)]
    if names != [f"LABEL_{i}" for i in range(len(names))]:  # its default names
        report = report._replace(metadata={"class_names": names})
    processor = None
    if (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file():
        options = {"class_info_file": None} if kind == "oneformer" else {}  # it would be downloaded, and is not needed
        processor = library.AutoImageProcessor.from_pretrained(folder, **options)
    task = _read_task(library, folder, config.task_seq_len) if kind == "oneformer" else None

    def run(module: nn.Module, images: Tensor) -> dict[str, Any]:
        given = {} if task is None else {"task_inputs": task.to(images.device).expand(len(images), -1)}
        output = dict(module(pixel_values=images, output_hidden_states=True, **given))
        return {**output, "logits": class_scores(output)} if universal else output

    modules = dict(module.named_modules())
    tokens = 1 + getattr(config, "num_register_tokens", 0)
    encoder = next((path for path in ("backbone", "model.pixel_level_module.encoder") if path in modules), "")
    pad_to = config.image_size if kind in ONE_SIZE else math.lcm(getattr(processor, "size_divisor", None) or 1, 32)
    normalization = processor and _normalization_of(processor)
    return Source(module, report, normalization, pad_to, "logits", find_stages, tokens, None, encoder, run)


def class_scores(output: dict[str, Any]) -> Tensor:
    """The logarithm of the score of each class, on the grid of the masks: B Q K+1 and B Q h w -> B K h w.

    A score is the sum over the queries of the probability of the class, without that of no object, times the
    probability of the mask (Cheng et al., MaskFormer, NeurIPS 2021, section 3.4). So the softmax of the result are the
    scores divided by their sum.
    """
    classes, masks = output["class_queries_logits"].float(), output["masks_queries_logits"].float()
    device = "cpu" if masks.is_meta else masks.device.type
    with torch.autocast(device, enabled=False):  # half precision loses the small scores
        scores = classes.softmax(-1)[..., :-1].mT @ masks.sigmoid().flatten(2)
    return scores.clamp(min=torch.finfo(torch.float32).tiny).log().unflatten(2, masks.shape[2:])


def find_stages(returned: dict[str, Any]) -> dict[str, str]:
    """Taps 'stage1' .. 'stage4' among the hidden states of the encoder: maps by stride, tokens by depth."""
    key = next((key for key in ("encoder_hidden_states", "hidden_states") if returned.get(key)), None)
    if key is None:
        raise ValueError(f"no hidden states to choose taps from in {describe(returned)}: set taps")
    states = returned[key]
    kept = [i for i, each in enumerate(states) if each.ndim == 4]
    if not kept:  # the first are the embeddings; the last may have queries among the tokens
        kept = [i for i, each in enumerate(states) if i and each.shape == states[1].shape]
    strides = [-states[i].shape[-1] if states[i].ndim == 4 else 1 for i in kept]
    return {f"stage{i}": f":{key}.{kept[chosen]}" for i, chosen in enumerate(four_stages(strides), 1)}


def _find_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"folder {folder} does not exist; expected a folder, or the name OWNER/NAME of a hub")
    return download(name)


def _load(auto: Any, folder: Path, config: Any, name: str, weights: str | None) -> tuple[nn.Module, LoadReport]:
    if weights is not None:
        module = auto.from_config(config)
        return module, load_strictly(module, read_weights(weights), "transformers")
    try:
        module, found = auto.from_pretrained(
            folder, config=config, output_loading_info=True, dtype=torch.float32, weights_only=True
        )
    except ImportError as error:  # scipy, which some networks need
        raise ValueError(f'transformers:{name}: {first_line(error)} (pip install ".[transformers]")') from error
    except Exception as error:  # a damaged file raises one of many types
        raise ValueError(
            f"transformers:{name} cannot be loaded ({first_line(error)}): a file is damaged, or contains more than "
            "tensors, which is refused because reading it would execute code"
        ) from error
    if wrong := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        raise ValueError(f"transformers:{name}: {len(wrong)} tensors are missing or of another shape: {wrong[:5]}")
    report = report_own(module, f"transformers:{name}", "transformers", folder)
    return module, report._replace(skipped=tuple(found["unexpected_keys"]))


def _read_task(library: Any, folder: Path, length: int) -> Tensor:
    """OneFormer's text input, which asks for semantic segmentation: 1 x N token ids, 0 where there is no text."""
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # each missing file raises another type
        raise ValueError(f"{folder}: OneFormer's tokenizer cannot be read: {error}") from error
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    found = tokenizer(["the task is semantic"], **options)
    return found["input_ids"] * found["attention_mask"]


def _normalization_of(processor: Any) -> Normalization:
    """For pixels in 0..255."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    normalizes = getattr(processor, "do_normalize", False)
    mean, std = (processor.image_mean, processor.image_std) if normalizes else ((0.0,) * 3, (1.0,) * 3)
    mean, std = (tuple(round(each / factor, 3) for each in values) for values in (mean, std))
    return Normalization(mean, std, bool(getattr(processor, "do_flip_channel_order", False)))
