"""What a distillation buys: parameters, multiply-adds, taps and latency of teacher and student, side by side.

Neither weights nor data are needed: the networks get random weights, which cost the same.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file: its own folder is on the import path, the repository's root is not
    from _as_module import restart_as_module

    restart_as_module(__file__)

from configs.schema import Experiment
from engine.build import build_split, build_student
from engine.report import multiply_adds
from engine.teacher import Teacher, build_teacher
from models import MappedModel, SegModel, count_parameters
from models.deploy import Deployable
from models.inference import scaled_size
from models.onnx import require_extra
from scripts.export_onnx import export
from utils.config import load_config
from utils.console import environment, say
from utils.files import write_atomically

EXAMPLES = """\
examples:
  python scripts/model_info.py configs/camvid_cpu/r18_b0.py --json info.json
  python scripts/model_info.py configs/hmkd/cityscapes_r101_b0.py --size 512 1024 --runs 1
  python scripts/model_info.py configs/baselines/camvid_b0.py --runs 20 --cfg-options student.width=128
"""
WARM_UP = 2  # runs that do not count: the first ones choose kernels and get their memory
MEANING = {
    "multiply_adds": "of one image; one multiplication with its addition counts as one, as in the field's papers; "
    "convolutions, linear layers and attention's products count, all else does not",
    "latency_ms": "from one uint8 image on the device to its class map, normalisation and upsampling included",
}
Size = tuple[int, int]
Milliseconds = dict[str, list[float]]  # of every run, by network


def class_names(config: Experiment, source: str) -> tuple[str, ...]:
    """The classes that the dataset knows by itself: instead of its files it is given a list of one empty image."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "image.png").touch()
        (Path(folder) / "list.txt").write_text("image.png\n")
        data = config.data.model_copy(update={"root": folder, "val_list": "list.txt", "packed": None})
        return build_split(config.model_copy(update={"data": data}), source, "val").class_names


def image_size(config: Experiment, source: str) -> tuple[Size, str]:
    """(H, W) of a whole validation image, or of the training crop where there is no data, and which of the two."""
    listed = Path(config.data.root) / config.data.val_list
    if not listed.is_file():
        return config.data.crop_size, f"data.crop_size: {listed} does not exist"
    height, width, _ = build_split(config, source, "val").load_image(0).shape
    return (height, width), f"first image of {listed}"


def network_of(model: SegModel | Teacher) -> tuple[SegModel, Fraction]:
    """The network alone, and its input scale. The merging of a teacher's classes is left out: it costs very little."""
    if not isinstance(model, Teacher):
        return model, Fraction(1)
    network = model.network
    return (network.model if isinstance(network, MappedModel) else network), model.scale


def describe(model: SegModel | Teacher, size: Size) -> dict:
    """All that needs no clock: parameters, multiply-adds, and the taps with their grids on an image of ``size``."""
    taps = model.spec.taps
    model, scale = network_of(model)
    backbone, head = count_parameters(model.backbone), count_parameters(model.head)
    auxiliary = count_parameters(model) - backbone - head
    return {
        "parameters": {"backbone": backbone, "head": head, "deployed": backbone + head, "auxiliary": auxiliary},
        "multiply_adds": multiply_adds(model, scaled_size(size, scale)),
        "taps": {
            name: {
                "channels": tap.channels,
                "stride": float(tap.stride) if isinstance(tap.stride, Fraction) else tap.stride,
                "grid": [-(-side // tap.stride) for side in size],
            }
            for name, tap in taps.items()
        },
    }


def take_turns(calls: dict[str, Callable[[], object]], runs: int, device: torch.device) -> Milliseconds:
    """Times each call ``runs`` times; the calls take turns, so that what slows the machine slows them all."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            _wait_for(device)
            start = time.perf_counter()
            call()
            _wait_for(device)
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_latency(
    models: dict[str, SegModel | Teacher], size: Size, device: torch.device, runs: int
) -> Iterator[tuple[str, Milliseconds | str]]:
    """Times the whole of what is deployed, one image at a time, in one form after the other.

    Args:
        models: by name.
        size: (H, W) of the image.
        device: of PyTorch's forms; ONNX Runtime computes on the CPU, with as many threads as PyTorch.
        runs: of each form, beside those that warm up.

    Yields:
        The name of the form, and its times; or why it has none.
    """
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks = {name: network_of(model) for name, model in models.items()}
    modules = {name: Deployable(net, input_scale=scale).to(device) for name, (net, scale) in networks.items()}

    def forward(module: nn.Module, image: Tensor, dtype: torch.dtype | None) -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            module(image)

    def time_pytorch(dtype: torch.dtype | None = None) -> Milliseconds:
        there = image.to(device)
        return take_turns({name: partial(forward, modules[name], there, dtype) for name in modules}, runs, device)

    yield "eager fp32", time_pytorch()
    for module in modules.values():
        module.to(memory_format=torch.channels_last)
    yield "channels_last fp32", time_pytorch()
    yield "channels_last bf16", time_pytorch(torch.bfloat16)

    try:
        sessions = {name: open_in_onnxruntime(module.cpu(), size) for name, module in modules.items()}
    except ValueError as error:
        yield "ONNX Runtime", str(error)
        return
    calls = {name: partial(session.run, None, {"images": image.numpy()}) for name, session in sessions.items()}
    yield f"ONNX Runtime {require_extra('onnxruntime').__version__} CPU", take_turns(calls, runs, torch.device("cpu"))


def open_in_onnxruntime(network: Deployable, size: Size) -> Any:
    """An ``onnxruntime.InferenceSession`` of the exported network, with as many threads as PyTorch has.

    Raises:
        ValueError: the optional packages are not installed, or PyTorch cannot export this network.
    """
    onnxruntime, _, _ = map(require_extra, ("onnxruntime", "onnx", "onnxscript"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export(network, size, dynamic=False, file=file)
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def device_name(device: torch.device) -> str:
    """What the times were measured on, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")  # Linux alone says the model there, and does not say it in platform.processor()
    lines = facts.read_text().splitlines() if facts.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.processor() or "CPU")
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()})"


def gain(amounts: dict[str, float], less: str, more: str) -> str:
    """``'3.4x fewer'``: how much less, or else more, the student needs than the teacher; nothing without a teacher."""
    if len(amounts) == 1:
        return ""
    teacher, student = amounts["teacher"], amounts["student"]
    return f"{teacher / student:.1f}x {less}" if student <= teacher else f"{student / teacher:.1f}x {more}"


def print_line(label: str, cells: dict[str, str], remark: str = "") -> None:
    """A label, a column for each network, and what the student gains."""
    say(f"{label:<27}{''.join(f'{cell:>28}' for cell in cells.values())}  {remark}".rstrip())


def print_networks(config: Experiment, about: dict[str, dict]) -> None:
    """The part of the table that needs no clock."""

    def print_amounts(section: str, parts: tuple[str, ...], unit: float) -> None:
        for part in parts:
            amounts = {name: facts[section][part] for name, facts in about.items()}
            shown = {name: f"{amount / unit:.2f}" for name, amount in amounts.items()}
            print_line(f"  {part}", shown, gain(amounts, "fewer", "more"))

    print_line("", {name: name for name in about}, "the student:" if len(about) == 2 else "")
    for key in ("backbone", "head"):
        print_line(key, {name: getattr(getattr(config, name), key) or "as in its weights" for name in about})
    say("parameters (M)")
    print_amounts("parameters", ("backbone", "head", "deployed"), 1e6)
    auxiliary = {name: facts["parameters"]["auxiliary"] / 1e6 for name, facts in about.items()}
    if any(auxiliary.values()):
        print_line("  + auxiliary, in training", {name: f"{amount:.2f}" for name, amount in auxiliary.items()})
    say("GFLOPs (multiply-adds)")
    print_amounts("multiply_adds", ("backbone", "head", "total"), 1e9)
    say("taps (channels, stride, grid)")
    for tap in about["student"]["taps"]:
        shape = "{channels} /{stride:g} {grid[0]}x{grid[1]}".format
        print_line(f"  {tap}", {name: shape(**facts["taps"][tap]) for name, facts in about.items()})


def run(config: Experiment, args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU on this machine; use --device cpu")
    size, origin = (tuple(args.size), "--size") if args.size else image_size(config, args.config)
    names = class_names(config, args.config)
    teacher = build_teacher(config, args.config, names, pretrained=False)
    student, _ = build_student(config, args.config, names, pretrained=False)
    models = ({} if teacher is None else {"teacher": teacher}) | {"student": student}

    say(f"{args.config}: {len(names)} classes, image {size[0]}x{size[1]} ({origin})")
    about = {name: describe(model, size) for name, model in models.items()}
    print_networks(config, about)

    say(f"latency (ms), median (min..max) of {args.runs} on {device_name(device)}, torch {torch.__version__}")
    latency, medians = {}, {}
    for form, times in measure_latency(models, size, device, args.runs):
        latency[form] = times
        if isinstance(times, str):
            say(f"  {form}: {times}")
            continue
        medians[form] = {name: statistics.median(measured) for name, measured in times.items()}
        shown = {name: f"{medians[form][name]:.1f} ({min(t):.1f}..{max(t):.1f})" for name, t in times.items()}
        print_line(f"  {form}", shown, gain(medians[form], "faster", "slower"))

    if teacher is not None:
        parameters, operations = (
            gain({name: about[name][section][part] for name in models}, "fewer", "more")
            for section, part in (("parameters", "deployed"), ("multiply_adds", "total"))
        )
        # Each in its fastest form: nobody would deploy the teacher in one that is slow for it.
        fastest = {name: min(form[name] for form in medians.values()) for name in models}
        speed = gain(fastest, "faster", "slower")
        say(f"student: {parameters} parameters, {operations} GFLOPs, {speed} (each in its fastest form)")

    if args.json:
        result = {
            "source": args.config, "image_size": size, "image_size_from": origin, "networks": about,
            "latency_ms": latency, "meaning": MEANING, "device": device_name(device),
            "environment": environment(), "config": config.model_dump(),
        }  # fmt: skip
        write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "model_info.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="Python config file")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="default: a whole validation image, else data.crop_size"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each form (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and its provenance")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override config values")
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: expected 1 or more")
    if args.size and min(args.size) < 1:
        parser.error(f"--size {args.size[0]} {args.size[1]}: expected two positive numbers of pixels")
    try:
        run(load_config(args.config, Experiment, args.cfg_options), args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        sys.exit(f"error: no memory for images of this size, give a smaller --size: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
