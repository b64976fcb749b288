"""Exports a trained student, or the config's teacher, and compares the file with PyTorch on real images.

onnx: one file. openvino: an .xml file and its weights (.bin). torch: a .pt2 file, which PyTorch runs without this
repository (torch.export.load).

A file includes normalisation, upsampling and argmax: its input is `images` (B 3 H W uint8 RGB), its outputs are
`classes` (B H W uint8), `logits` (B K H W float32) or both. It is written only if its class maps agree with PyTorch's.
Its metadata (JSON values) are class_names, palette, network, normalization, step, miou, config_sha256, ...
The network sees whole images, at the scale of eval.scales if there is only one; a note is printed if the config
evaluates in another way (windows, several scales, flips).
"""

import argparse
import hashlib
import math
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

import numpy as np
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
from models.extras import import_extra
from models.inference import Size, predict, resize
from scripts._command import add_config_options, command_parser, one_line_errors
from scripts._formats import PACKAGES, SUFFIXES, Run, open_exported, save, write_metadata
from scripts._quantize import quantize
from utils.config import ConfigError, dump_config, load_config
from utils.files import user_path, write_atomically

EXAMPLES = """\
examples:
  python scripts/export.py configs/camvid_cpu/r18.py work_dirs/camvid_cpu/r18/student.safetensors
      writes student.onnx beside it, for one image of the validation images' size
  python scripts/export.py CONFIG CHECKPOINT --to torch --dynamic
      writes student.pt2, for any batch, height and width
  python scripts/export.py CONFIG CHECKPOINT --dynamic --outputs classes logits --out net.onnx
  python scripts/export.py CONFIG CHECKPOINT --half
  python scripts/export.py CONFIG CHECKPOINT --to openvino --int8 static
      evaluates the file before and after quantisation, and prints the change in mIoU
  python scripts/export.py CONFIG --teacher --out teacher.onnx
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
    parser.add_argument("--to", choices=SUFFIXES, default="onnx", help="default: onnx")
    parser.add_argument("--teacher", action="store_true", help="export the config's teacher instead of a checkpoint")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="default: CHECKPOINT's path, with the ending .onnx (.xml, .pt2), .half.onnx or .int8.onnx",
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
        help="quantise with ONNX Runtime (OpenVINO: nncf) the weights, and the activations at run time (dynamic) or "
        f"with ranges from {CALIBRATION_IMAGES} training images (static); evaluates both files on the validation set",
    )  # fmt: skip
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.teacher == (args.checkpoint is not None):
        parser.error("give either a CHECKPOINT or --teacher")
    if args.teacher and not args.out:
        parser.error("--teacher needs --out FILE")
    if args.out and args.out.suffix != SUFFIXES[args.to]:
        parser.error(f"--out {args.out}: expected a name that ends in {SUFFIXES[args.to]}")
    if args.int8 not in {"onnx": (None, "dynamic", "static"), "openvino": (None, "static")}.get(args.to, (None,)):
        parser.error(f"--int8 {args.int8}: --to {args.to} has none; onnx has both kinds, openvino has static")
    if args.size and min(args.size) < 1:
        parser.error(f"--size {args.size[0]} {args.size[1]}: expected 1 or more pixels")
    return args


def load_network(
    config: Experiment, args: argparse.Namespace, dataset: SegDataset
) -> tuple[SegModel | Teacher, dict[str, Any]]:
    """The network, and the metadata of its file."""
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


def at_size(image: Tensor, size: Size | None) -> Tensor:
    """An image 3 H W uint8 as a batch of one, resized to ``size`` unless that is None."""
    batch = image.unsqueeze(0)
    return batch if size in (None, image.shape[-2:]) else resize(batch, size).round().to(torch.uint8)


def spread(dataset: SegDataset, count: int, size: Size | None) -> Iterator[Tensor]:
    """At most ``count`` images 1 3 H W, evenly spread, because neighbours are often frames of one video."""
    count = min(count, len(dataset))
    for i in range(count):
        yield at_size(dataset[int((i + 0.5) * len(dataset) / count)]["image"], size)


def class_map(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return outputs["classes"] if "classes" in outputs else outputs["logits"].argmax(1)


def check(
    exported: tuple[str, Run], model: SegModel | Teacher, batches: Iterable[Tensor], metadata: dict[str, Any], hint: str
) -> None:
    """Compares the class maps of an exported file with PyTorch's, and prints the share of equal pixels and the times.

    Raises:
        ValueError: they agree on less than ``AGREEMENT`` of the pixels; ends with ``hint``.
    """
    (runtime, run), same, pixels, shapes, seconds = exported, Counter(), 0, Counter(), defaultdict(list)
    for images in batches:
        shape, start = " x ".join(map(str, images.shape)), time.perf_counter()
        truth = predict(model, images, scales=(metadata["scale"],)).numpy()
        middle = time.perf_counter()
        try:
            outputs = run(images)
        except Exception as error:  # the runtimes' types have no common base
            raise ValueError(f"{runtime} fails on images of {shape}: {error}; nothing was written{hint}") from error
        seconds["PyTorch"].append(middle - start)
        seconds[runtime].append(time.perf_counter() - middle)
        pixels += truth.size
        shapes[shape] += 1
        for name, output in outputs.items():
            same[name] += int((class_map({name: output}) == truth).sum())
    checked = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
    for name in metadata["outputs"]:
        share, bar = same[name] / pixels, AGREEMENT[metadata["precision"]]
        message = f"{name}: {runtime} and PyTorch agree on {100 * share:.3f}% of pixels ({checked})"
        if share < bar:
            raise ValueError(f"{message}; expected {100 * bar:g}% or more: nothing was written{hint}")
        print(message)
    print("  ".join(f"{name}: {1000 * statistics.median(times):.0f} ms" for name, times in seconds.items()))


def mib(file: Path) -> float:
    """Size of a file, and of its .bin where it has one, in MiB."""
    return sum(part.stat().st_size for part in parts_of(file)) / 2**20


def parts_of(file: Path) -> list[Path]:
    return [part for part in (file.with_suffix(".bin"), file) if part.is_file()]


def evaluate(file: Path, dataset: SegDataset, size: Size | None, name: str) -> float:
    """mIoU (0..1) on a dataset; also prints it with the size of the file and the mean time of an image.

    Images of another size are resized to ``size``, and their class maps back by the nearest neighbour.
    """
    (_, run), confusion, seconds = open_exported(file), ConfusionMatrix(dataset.num_classes), 0.0
    for i in tqdm(range(len(dataset)), desc=name, leave=False, disable=None):
        image, label = dataset[i]["image"], dataset[i]["label"]
        batch = at_size(image, size)
        start = time.perf_counter()
        classes = torch.from_numpy(class_map(run(batch)).astype(np.uint8))
        seconds += time.perf_counter() - start
        confusion.update(F.interpolate(classes.unsqueeze(1), label.shape, mode="nearest-exact")[0, 0], label)
    miou = confusion.compute().miou
    if math.isnan(miou):
        raise ValueError(f"{dataset.root}: no validation pixel has a label, so the mIoU of int8 cannot be measured")
    ms = 1000 * seconds / len(dataset)
    print(
        f"{name}: mIoU {100 * miou:.2f} on {len(dataset)} validation images, {mib(file):.1f} MiB, {ms:.0f} ms an image"
    )
    return miou


def write_parts(file: Path, out: Path) -> None:
    """Copies an exported file to ``out``, atomically; an .xml replaces the one of before after its .bin is complete."""
    *weights, graph = parts_of(file)
    staged = out.with_name(f".{out.name}.new") if weights else out
    write_atomically(staged, graph.read_bytes())
    try:
        for part in weights:
            write_atomically(out.with_suffix(part.suffix), part.read_bytes())
        staged.replace(out)
    except OSError:
        staged.unlink()
        raise


def run(args: argparse.Namespace) -> None:
    for package in PACKAGES[args.to]:
        import_extra(package, args.to)
    config = load_config(args.config, Experiment, args.cfg_options)
    dataset = build_split(config, args.config, "val")
    model, metadata = load_network(config, args, dataset)
    kind = ".half" if args.half else ".int8" if args.int8 else ""
    out = args.out or Path(args.checkpoint).with_suffix(kind + SUFFIXES[args.to])
    traced = tuple(args.size or dataset[0]["image"].shape[-2:])
    size = None if args.dynamic else traced
    protocol = Eval(scales=(metadata["scale"],)).protocol
    if config.eval.protocol != protocol:
        settings = ", ".join(f"{name}={getattr(config.eval, name)}" for name in ("mode", "scales", "flip"))
        print(f"note: the config evaluates with {settings}; the file sees whole images at scale {metadata['scale']:g}")

    with tempfile.TemporaryDirectory() as folder:
        network, input_scale = (model.network, model.scale) if args.teacher else (model, Fraction(1))
        deployed = Deployable(network, args.outputs, args.half, metadata["scale"], input_scale)
        file = save(args.to, deployed, traced, args.dynamic, Path(folder), metadata)
        hint = "; it does not work for every size: use --size instead of --dynamic" if args.dynamic else ""
        exported = open_exported(file)
        check(exported, model, spread(dataset, CHECKED_IMAGES, size), metadata, hint)
        if args.dynamic:
            # Another batch size, and odd sides, which no stride divides, so that every grid is rounded.
            other = tuple(3 * length // 4 | 1 for length in traced)
            check(exported, model, [torch.cat(list(spread(dataset, 3, other)))], metadata, hint)
        if args.int8:
            train = build_split(config, args.config, "train")
            ranges = min(CALIBRATION_IMAGES, len(train)) if args.int8 == "static" else 0
            quantized = quantize(file, args.int8, spread(train, ranges, size))
            write_metadata(quantized, metadata)
            before = evaluate(file, dataset, size, "float32")
            after = evaluate(quantized, dataset, size, "int8")
            calibrated = f"static, calibrated on {ranges} training images" if ranges else "dynamic"
            print(f"int8 ({calibrated}) changes the mIoU by {100 * (after - before):+.2f} points")
            figures = {"kind": args.int8, "calibration_images": ranges, "miou_float": before, "miou_int8": after}
            metadata |= {"precision": "int8", "miou": after, "eval": protocol, "quantization": figures}
            write_metadata(quantized, metadata)
            file = quantized
        write_parts(file, out)
        print(f"wrote {out} ({mib(file):.1f} MiB)")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
