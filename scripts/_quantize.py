"""Quantises ONNX files with ONNX Runtime."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from models.onnx import require_extra


def quantize(file: Path, kind: str, calibration: Iterator[Tensor]) -> Path:
    """Writes the int8 version of an ONNX file beside it and returns its path.

    Weights have seven bits: with eight, CPUs without VNNI saturate, and the measured mIoU would be valid only on some
    machines. Only convolutions and matrix products are quantised; the rest stays in float32.

    Args:
        file: the float32 file.
        kind: ``'dynamic'`` or ``'static'``.
        calibration: images 1 3 H W from which ``'static'`` takes the activations' ranges.
    """
    quantization = require_extra("onnxruntime.quantization")
    feeds = ({"images": images.numpy()} for images in calibration)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(feeds, None)

    prepared, quantized = file.with_name("prepared.onnx"), file.with_name("int8.onnx")
    common = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"], "reduce_range": True}
    try:
        quantization.quant_pre_process(file, prepared, skip_symbolic_shape=True)
        if kind == "static":
            quantization.quantize_static(prepared, quantized, Reader(), per_channel=True, **common)
        else:  # QUInt8: ONNX Runtime has no convolution of integers for QInt8
            quantization.quantize_dynamic(prepared, quantized, weight_type=quantization.QuantType.QUInt8, **common)
    except Exception as error:  # ONNX Runtime's types have no common base
        raise ValueError(f"ONNX Runtime cannot quantise this network: {error}") from error
    return quantized
