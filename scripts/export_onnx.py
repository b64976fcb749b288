"""Exports a trained student, or the config's teacher, to one ONNX file, and compares it with PyTorch on real images.

The file includes normalisation, upsampling and argmax: its input is `images` (B 3 H W uint8 RGB), its outputs are
`classes` (B H W uint8), `logits` (B K H W float32) or both. It is written only if ONNX Runtime's class maps agree with
PyTorch's. Its metadata (JSON values) are class_names, palette, network, normalization, step, miou, config_sha256, ...
The network sees whole images, at the scale of eval.scales if there is only one; a note is printed where the config
evaluates otherwise (windows, several scales, flips).
"""

import argparse
import hashlib
import json
import math
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository's root is not on the import path
    from _as_module import restart_as_module

    restart_as_module(__file__)

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from configs.schema import Eval, Experiment
from datasets.base import SegDataset
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.metrics import ConfusionMatrix
from engine.teacher import Teacher, build_teacher
from models import SegModel, read_weights
from models.deploy import OUTPUTS, Deployable
from models.inference import Size, predict, resize
from models.onnx import OnnxModel, require_extra
from scripts._command import add_config_options, command_parser, one_line_errors
from scripts._quantize import quantize
from utils.config import ConfigError, dump_config, load_config
from utils.files import user_path, write_atomically

EXAMPLES = """\
examples:
  python scripts/export_onnx.py configs/camvid_cpu/r18.py work_dirs/camvid_cpu/r18/student.safetensors
      writes student.onnx beside it, for one image of the validation images' size
  python scripts/export_onnx.py CONFIG CHECKPOINT --dynamic --outputs classes logits --out net.onnx
  python scripts/export_onnx.py CONFIG CHECKPOINT --half
  python scripts/export_onnx.py CONFIG CHECKPOINT --int8 static
      evaluates the file before and after quantisation, and prints the change in mIoU
  python scripts/export_onnx.py CONFIG --teacher --out teacher.onnx
"""
# Share of the pixels on which a file and PyTorch in float32 must agree. Half precision changes those whose two best
# classes are almost equal (0.03% on CamVid); a real failure, such as an overflow, changes far more.
AGREEMENT = {"float32": 0.999, "float16": 0.995}
CALIBRATION_IMAGES = 32
CHECKED_IMAGES = 8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("config", help="Python config file")
    parser.add_argument("checkpoint", nargs="?", help="last.pt, best.pt, step_*.pt or student.safetensors")
    parser.add_argument("--teacher", action="store_true", help="export the config's teacher instead of a checkpoint")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="default: CHECKPOINT's path ending in .onnx, .half.onnx or .int8.onnx",
    )
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=["classes"], help="default: classes")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"),
        help="default: of the first validation image; other images are resized to it for the checks",
    )  # fmt: skip
    shape.add_argument("--dynamic", action="store_true", help="any batch, height and width; exporting may take minutes")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="float16 inside; input and outputs stay the same")
    precision.add_argument(
        "--int8", choices=("dynamic", "static"),
        help="quantise with ONNX Runtime: the weights, and the activations at run time (dynamic) or with ranges from "
        f"{CALIBRATION_IMAGES} training images (static); evaluates both files on the validation set",
    )  # fmt: skip
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.teacher == (args.checkpoint is not None):
        parser.error("give either a CHECKPOINT or --teacher")
    if args.teacher and not args.out:
        parser.error("--teacher needs --out FILE")
    if args.out and args.out.suffix != ".onnx":
        parser.error(f"--out {args.out}: expected a name that ends in .onnx")
    if args.size and min(args.size) < 1:
        parser.error(f"--size {args.size[0]} {args.size[1]}: expected 1 or more pixels")
    return args


def load_network(
    config: Experiment, args: argparse.Namespace, dataset: SegDataset
) -> tuple[SegModel | Teacher, dict[str, Any]]:
    """The network, and the metadata of its ONNX file."""
    if args.teacher:
        if config.teacher is None:
            raise ConfigError(f"{args.config}: teacher is None: there is no teacher to export")
        if config.teacher.class_map is not None:
            raise ConfigError(
                f"{args.config}: teacher.class_map: use a config with the teacher's own classes to export it"
            )
        model = build_teacher(config, args.config, dataset.class_names)
        network, report = model.network, model.loaded
        settings = config.teacher.model_dump(exclude={"weights"}, exclude_none=True)
    else:
        model, _ = build_student(config, args.config, dataset.class_names, pretrained=False)
        network, report = model, load_trained(model, read_weights(args.checkpoint), dataset.class_names)
        settings = {name: value for name, value in config.student.network.items() if value is not None}
    print(report)
    scales = config.eval.scales
    metadata = {
        "class_names": dataset.class_names, "palette": dataset.palette.tolist(),
        "network": report.metadata.get("network", {}) | settings, "normalization": network.normalization._asdict(),
        "step": report.metadata.get("step"), "miou": report.metadata.get("miou"),
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "eval": report.metadata.get("config", {}).get("eval"), "scale": scales[0] if len(scales) == 1 else 1.0,
        "outputs": args.outputs, "precision": "float16" if args.half else "float32",
    }  # fmt: skip
    return model.eval(), metadata


def export(network: Deployable, size: Size, dynamic: bool, file: Path) -> None:
    """Writes ``network`` as ONNX, weights included, for one image of ``size`` or for any batch and size.

    Raises:
        ValueError: the network cannot take this size, or PyTorch cannot export it.
    """
    # A dynamic dimension must not have length 1 when it is traced, because that broadcasts.
    images = torch.zeros(2 if dynamic else 1, 3, *size, dtype=torch.uint8)
    with torch.inference_mode():
        network(images)
    shapes = ({0: "batch", 2: "height", 3: "width"},) if dynamic else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings are about the exporter's own code
            program = torch.onnx.export(
                network, (images,), dynamo=True, verbose=False, dynamic_shapes=shapes,
                input_names=["images"], output_names=list(network.outputs),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"PyTorch {torch.__version__} cannot export this network: {error}") from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # they contain stack traces with paths of this machine
    program.save(file, external_data=False)


def write_metadata(file: Path, metadata: dict[str, Any]) -> None:
    """Writes metadata into an ONNX file, each value as JSON."""
    onnx = require_extra("onnx")
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(model, file)


def at_size(image: Tensor, size: Size | None) -> Tensor:
    """An image 3 H W uint8 as a batch of one, resized to ``size`` unless that is None."""
    batch = image.unsqueeze(0)
    return batch if size in (None, image.shape[-2:]) else resize(batch, size).round().to(torch.uint8)


def spread(dataset: SegDataset, count: int, size: Size | None) -> Iterator[Tensor]:
    """At most ``count`` images 1 3 H W, evenly spread, because neighbours are often frames of one video."""
    count = min(count, len(dataset))
    for i in range(count):
        yield at_size(dataset[int((i + 0.5) * len(dataset) / count)]["image"], size)


def check(exported: OnnxModel, model: SegModel | Teacher, batches: Iterable[Tensor], bar: float) -> None:
    """Compares the class maps of an exported file with PyTorch's.

    Raises:
        ValueError: they agree on less than ``bar`` of the pixels (a share in 0..1).
    """
    same, pixels, shapes = Counter(), 0, Counter()
    for images in batches:
        truth = predict(model, images, scales=(exported.metadata["scale"],)).numpy()
        pixels += truth.size
        shapes[" x ".join(map(str, images.shape))] += 1
        for name, output in exported.run(images).items():
            same[name] += int(((output if name == "classes" else output.argmax(1)) == truth).sum())
    checked = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
    for name in exported.metadata["outputs"]:
        share = same[name] / pixels
        message = f"{name}: ONNX Runtime and PyTorch agree on {100 * share:.3f}% of pixels ({checked})"
        if share < bar:
            hint = "" if exported.shape[2] else "; the exporter lost track of a size: use --size instead of --dynamic"
            raise ValueError(f"{message}; expected {100 * bar:g}% or more: nothing was written{hint}")
        print(message)


def evaluate(exported: OnnxModel, dataset: SegDataset, size: Size | None, name: str) -> float:
    """mIoU (0..1) on a dataset; also prints it with the size of the file and the mean time of an image.

    Images of another size are resized to ``size``, and their class maps back by the nearest neighbour.
    """
    confusion, seconds = ConfusionMatrix(dataset.num_classes), 0.0
    for i in tqdm(range(len(dataset)), desc=name, leave=False, disable=None):
        image, label = dataset[i]["image"], dataset[i]["label"]
        batch = at_size(image, size)
        start = time.perf_counter()
        classes = torch.from_numpy(exported(batch))
        seconds += time.perf_counter() - start
        confusion.update(F.interpolate(classes.unsqueeze(1), label.shape, mode="nearest-exact")[0, 0], label)
    miou = confusion.compute().miou
    if math.isnan(miou):
        raise ValueError(f"{dataset.root}: no validation pixel has a label, so the mIoU of int8 cannot be measured")
    mib, ms = exported.path.stat().st_size / 2**20, 1000 * seconds / len(dataset)
    print(f"{name}: mIoU {100 * miou:.2f} on {len(dataset)} validation images, {mib:.1f} MiB, {ms:.0f} ms an image")
    return miou


def run(args: argparse.Namespace) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_extra(package)
    config = load_config(args.config, Experiment, args.cfg_options)
    dataset = build_split(config, args.config, "val")
    model, metadata = load_network(config, args, dataset)
    suffix = ".half.onnx" if args.half else ".int8.onnx" if args.int8 else ".onnx"
    out = args.out or Path(args.checkpoint).with_suffix(suffix)
    traced = tuple(args.size or dataset[0]["image"].shape[-2:])
    size = None if args.dynamic else traced
    protocol = Eval(scales=(metadata["scale"],)).protocol
    if config.eval.protocol != protocol:
        settings = ", ".join(f"{name}={getattr(config.eval, name)}" for name in ("mode", "scales", "flip"))
        print(f"note: the config evaluates with {settings}; the file sees whole images at scale {metadata['scale']:g}")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        network, input_scale = (model.network, model.scale) if args.teacher else (model, Fraction(1))
        export(Deployable(network, args.outputs, args.half, metadata["scale"], input_scale), traced, args.dynamic, file)
        write_metadata(file, metadata)
        exported, bar = OnnxModel(file), AGREEMENT[metadata["precision"]]
        check(exported, model, spread(dataset, CHECKED_IMAGES, size), bar)
        if args.dynamic:
            # Another batch size, and odd sides, which no stride divides, so that every grid is rounded.
            other = tuple(3 * length // 4 | 1 for length in traced)
            check(exported, model, [torch.cat(list(spread(dataset, 3, other)))], bar)
        if args.int8:
            train = build_split(config, args.config, "train")
            ranges = min(CALIBRATION_IMAGES, len(train)) if args.int8 == "static" else 0
            quantized = quantize(file, args.int8, spread(train, ranges, size))
            write_metadata(quantized, metadata)
            before = evaluate(exported, dataset, size, "float32")
            after = evaluate(OnnxModel(quantized), dataset, size, "int8")
            calibrated = f"static, calibrated on {ranges} training images" if ranges else "dynamic"
            print(f"int8 ({calibrated}) changes the mIoU by {100 * (after - before):+.2f} points")
            figures = {"kind": args.int8, "calibration_images": ranges, "miou_float": before, "miou_int8": after}
            metadata |= {"precision": "int8", "miou": after, "eval": protocol, "quantization": figures}
            write_metadata(quantized, metadata)
            file = quantized
        content = file.read_bytes()
        write_atomically(out, content)
    print(f"wrote {out} ({len(content) / 2**20:.1f} MiB)")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
