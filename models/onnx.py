"""Runs the ONNX files that ``scripts/export.py`` writes, with ONNX Runtime.

Such a file has the input ``images`` (B 3 H W uint8 RGB), the outputs ``classes`` (B H W uint8), ``logits``
(B K H W float32) or both, and metadata (``class_names``, ``palette``, ...), each value as JSON.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from models.extras import import_extra
from models.weights.metadata import check_metadata

REQUIRED = ("class_names", "palette", "outputs")  # without these nobody knows what a file predicts


class OnnxModel:
    """An exported network in ONNX Runtime, on the CPU.

    Args:
        path: file written by ``scripts/export.py``.

    Attributes:
        metadata: of the file, decoded: ``class_names``, ``palette``, ``network``, ``normalization``, ``step``,
            ``miou``, ``config_sha256``, ``outputs``, and ``quantization`` of a quantised file.
        shape: (B, 3, H, W) of its input; None where every length is accepted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an ONNX file, is damaged, or was not written by ``scripts/export.py``; or ONNX
            Runtime is not installed.
    """

    def __init__(self, path: str | Path):
        onnxruntime = import_extra("onnxruntime", "onnx")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"ONNX file {self.path} does not exist")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well, and its warnings do not help the user
        try:
            self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's types have no common base
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{self.path} cannot be read as an ONNX file (damaged, or not one): {reason}") from error
        self.metadata: dict[str, Any] = _decode(self.session.get_modelmeta().custom_metadata_map)
        outputs = [output.name for output in self.session.get_outputs()]
        if not (self.metadata.keys() >= set(REQUIRED) and {"classes", "logits"}.issuperset(outputs)):
            raise ValueError(
                f"{self.path} has the outputs {', '.join(outputs)} and the metadata {', '.join(self.metadata) or '-'}; "
                f"expected classes, logits or both, and {', '.join(REQUIRED)}, as scripts/export.py writes them"
            )
        # Not ``network``, from which nothing is built here: the settings of an exported teacher have further keys.
        check_metadata({name: self.metadata[name] for name in self.metadata.keys() - {"network"}}, str(self.path))
        # ONNX Runtime gives a free dimension as its name, or as None.
        shape = self.session.get_inputs()[0].shape
        self.shape = tuple(length if isinstance(length, int) else None for length in shape)

    def run(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """All outputs of the file by name, for B 3 H W uint8 RGB images (an array or a CPU tensor).

        Raises:
            ValueError: the images have another dtype or shape, another size than the file was exported for, or a size
                that the network does not accept.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {images.shape} {images.dtype}; expected B x 3 x H x W uint8, RGB")
        if any(want not in (None, found) for want, found in zip(self.shape, images.shape, strict=True)):
            raise ValueError(
                f"{self.path} was exported for images of {_shape(self.shape)}; these are {_shape(images.shape)}: "
                f"export it with --size {images.shape[2]} {images.shape[3]}, or with --dynamic for any batch and size"
            )
        names = [output.name for output in self.session.get_outputs()]
        try:
            outputs = self.session.run(names, {"images": images})
        except Exception as error:  # ONNX Runtime's types have no common base
            raise ValueError(f"{self.path} fails on images of {_shape(images.shape)}: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def __call__(self, images: ArrayLike) -> np.ndarray:
        """Class map B H W uint8 of B 3 H W uint8 RGB images; errors as :meth:`run`."""
        outputs = self.run(images)
        return outputs["classes"] if "classes" in outputs else outputs["logits"].argmax(1).astype(np.uint8)


def _decode(metadata: dict[str, str]) -> dict[str, Any]:
    """The JSON values of our metadata; {} where they are not JSON, because another program wrote them."""
    try:
        return {name: json.loads(value) for name, value in metadata.items()}
    except (ValueError, RecursionError):
        return {}


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if length is None else str(length) for length in shape)
