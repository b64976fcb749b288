"""The file formats that scripts/export.py writes: how a network is converted, and how the file runs."""

import json
import math
import warnings
from collections.abc import Callable
from operator import floordiv, neg
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim
from torch.fx import GraphModule, Node

from models.deploy import Deployable
from models.extras import import_extra
from models.inference import Size
from models.onnx import OnnxModel

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf", "onnx", "onnxscript"),
    "torch": (),
}
ABOUT = "metadata.json"  # in a .pt2 file
Run = Callable[[Tensor], dict[str, np.ndarray]]  # images B 3 H W uint8 -> outputs by name


def save(form: str, network: Deployable, size: Size, dynamic: bool, folder: Path, metadata: dict[str, Any]) -> Path:
    """Writes ``network`` for one image of ``size``, or for any batch and size, with metadata; returns the file.

    OpenVINO's has its weights in a second file, which ends in .bin.

    Raises:
        ValueError: the network cannot take this size, or cannot be converted; the message names the operation.
    """
    file = folder / f"network{SUFFIXES[form]}"
    if form == "torch":
        images = example(network, size, dynamic)
        shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) if dynamic else None
        try:
            with torch.no_grad():
                program = torch.export.export(network, (images,), dynamic_shapes=shapes)
            _round_up_by_floordiv(program.graph_module)
            torch.export.save(program, file, extra_files={ABOUT: json.dumps(metadata)})
        except Exception as error:  # torch.export's types have no common base
            raise _unsupported(f"torch.export of PyTorch {torch.__version__}", error) from error
        return file
    onnx = folder / "onnx" / "network.onnx" if form == "openvino" else file
    onnx.parent.mkdir(exist_ok=True)
    export_onnx(network, size, dynamic, onnx)
    if form == "openvino":
        openvino = import_extra("openvino", "openvino")
        try:
            model = openvino.convert_model(onnx)
        except Exception as error:  # its types have no common base
            raise _unsupported(f"OpenVINO {openvino.__version__}", error) from error
        for operation in model.get_ops():  # what is read as linear_onnx ignores the attribute
            if operation.get_type_name() == "Interpolate" and operation.get_attributes()["antialias"]:
                operation.set_attribute("mode", "bilinear_pillow")
        openvino.save_model(model, file, compress_to_fp16=False)
    write_metadata(file, metadata)
    return file


def _unsupported(converter: str, error: BaseException) -> ValueError:
    """The error of a converter in one paragraph: its first cause names the operation."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ValueError(f"{converter} cannot export this network: {' '.join(str(error).split())}")


def _round_up_by_floordiv(module: GraphModule) -> None:
    """Writes ceil(a / b) of sizes, as in the "same" padding of timm, as -(-a // b): a .pt2 file can hold no ceil."""
    for node in module.graph.find_nodes(op="call_function", target=math.ceil):
        length, step = node.args[0].args
        with module.graph.inserting_before(node):
            value = _call(module, neg, length)
            value = _call(module, floordiv, value, step)
            value = _call(module, neg, value)
        node.replace_all_uses_with(value)
    module.graph.eliminate_dead_code()


def _call(module: GraphModule, function: Callable, *arguments: Node | int) -> Node:
    node = module.graph.call_function(function, arguments)
    node.meta["val"] = function(*(each.meta["val"] if isinstance(each, Node) else each for each in arguments))
    return node


def example(network: Deployable, size: Size, dynamic: bool) -> Tensor:
    """Black images to trace the network with, on which it was run: an error in it is no error of an exporter."""
    # A dynamic dimension must not have length 1 when it is traced, because that broadcasts.
    images = torch.zeros(2 if dynamic else 1, 3, *size, dtype=torch.uint8)
    with torch.inference_mode():
        network(images)
    return images


def export_onnx(network: Deployable, size: Size, dynamic: bool, file: Path) -> None:
    """Writes ``network`` as ONNX, weights included, without metadata; as :func:`save`."""
    images = example(network, size, dynamic)
    shapes = ({0: "batch", 2: "height", 3: "width"},) if dynamic else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings are about the exporter's own code
            program = torch.onnx.export(
                network, (images,), dynamo=True, verbose=False, dynamic_shapes=shapes,
                input_names=["images"], output_names=list(network.outputs),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise _unsupported(f"torch.onnx of PyTorch {torch.__version__}", error) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # they contain stack traces with paths of this machine
    program.save(file, external_data=False)


def write_metadata(file: Path, metadata: dict[str, Any]) -> None:
    """Writes metadata into an ONNX or OpenVINO file, each value as JSON (OpenVINO: in ``rt_info`` under ``hmkd``)."""
    values = {name: json.dumps(value) for name, value in metadata.items()}
    if file.suffix == ".onnx":
        onnx = import_extra("onnx", "onnx")
        model = onnx.load(file)
        onnx.helper.set_model_props(model, values)
        onnx.save(model, file)
    else:
        openvino = import_extra("openvino", "openvino")
        model = openvino.Core().read_model(file, config={"ENABLE_MMAP": False})  # it is overwritten
        for name, value in values.items():
            model.set_rt_info(value, ["hmkd", name])
        openvino.save_model(model, file, compress_to_fp16=False)


def compile_onnx(file: Path) -> Callable[[np.ndarray], object]:
    """The file in ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    onnxruntime = import_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def compile_openvino(file: Path) -> Callable[[np.ndarray], Any]:
    """The file, or an ONNX file, in OpenVINO on the CPU, with as many threads as PyTorch has.

    In float32: without this setting, a CPU that has bfloat16 computes in it.
    """
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return import_extra("openvino", "openvino").Core().compile_model(file, "CPU", settings)


def open_exported(file: Path) -> tuple[str, Run]:
    """The name of a file's runtime, and the function that runs it."""
    if file.suffix == ".onnx":
        return "ONNX Runtime", OnnxModel(file).run
    if file.suffix == ".xml":
        compiled = compile_openvino(file)
        return "OpenVINO", lambda images: {output.any_name: value for output, value in compiled(images.numpy()).items()}
    about = {ABOUT: ""}
    network = torch.export.load(file, extra_files=about).module()

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return dict(zip(json.loads(about[ABOUT])["outputs"], map(Tensor.numpy, network(images)), strict=True))

    return "torch.export", run
