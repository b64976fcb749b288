"""Quantises exported files to int8: ONNX with ONNX Runtime, OpenVINO with nncf."""

import logging
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from models.extras import import_extra


def quantize(file: Path, kind: str, calibration: Iterator[Tensor]) -> Path:
    """Writes the int8 version of an exported file beside it and returns its path.

    Args:
        file: the float32 file.
        kind: ``'dynamic'`` or ``'static'``; OpenVINO has only the second.
        calibration: images 1 3 H W from which ``'static'`` takes the activations' ranges.

    Raises:
        ValueError: the tool cannot quantise this network.
    """
    tool, make = ("nncf", _by_nncf) if file.suffix == ".xml" else ("ONNX Runtime", _by_onnxruntime)
    try:
        return make(file, kind, calibration)
    except Exception as error:  # the types of these tools have no common base
        raise ValueError(f"{tool} cannot quantise this network: {error}") from error


def _by_onnxruntime(file: Path, kind: str, calibration: Iterator[Tensor]) -> Path:
    """Quantises convolutions and matrix products; the rest stays in float32.

    Weights have seven bits: with eight, CPUs without VNNI saturate, and the measured mIoU would be valid only on some
    machines.
    """
    quantization = import_extra("onnxruntime.quantization", "onnx")
    feeds = ({"images": images.numpy()} for images in calibration)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(feeds, None)

    prepared, quantized = file.with_name("prepared.onnx"), file.with_name("int8.onnx")
    common = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"], "reduce_range": True}
    quantization.quant_pre_process(file, prepared, skip_symbolic_shape=True)
    if kind == "static":
        quantization.quantize_static(prepared, quantized, Reader(), per_channel=True, **common)
    else:  # QUInt8: ONNX Runtime has no convolution of integers for QInt8
        quantization.quantize_dynamic(prepared, quantized, weight_type=quantization.QuantType.QUInt8, **common)
    return quantized


def _by_nncf(file: Path, kind: str, calibration: Iterator[Tensor]) -> Path:
    openvino, nncf = (import_extra(name, "openvino") for name in ("openvino", "nncf"))
    nncf.set_log_level(logging.ERROR)
    images = nncf.Dataset([batch.numpy() for batch in calibration])
    # The default is for CNNs only: with it a MiT-B0 falls from 54.6 % mIoU to 6.4 %. This one also suits CNNs.
    model = nncf.quantize(openvino.Core().read_model(file), images, model_type=nncf.ModelType.TRANSFORMER)
    quantized = file.with_name("int8.xml")
    openvino.save_model(model, quantized, compress_to_fp16=False)
    return quantized
