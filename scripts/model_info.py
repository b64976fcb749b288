"""Compares teacher and student, or the students of several configs: parameters, multiply-adds, taps and latency.

No weights and no data are needed: random weights cost the same. If a config is in the work dir of a run, the best mIoU
of this run is shown.
"""

import argparse
import json
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from configs.schema import Experiment, Network
from engine.build import build_student
from engine.data import build_split
from engine.report import multiply_adds, table
from engine.teacher import Teacher, build_teacher
from models import MappedModel, SegModel, count_parameters
from models.deploy import Deployable
from models.extras import import_extra
from models.inference import scaled_size
from models.placement import place
from models.weights.hugging_face import read_json
from scripts._command import add_config_options, command_parser, one_line_errors
from scripts._device import DEFAULT, usable_device
from scripts._formats import compile_onnx, compile_openvino, export_onnx
from scripts._runs import last_protocol, read_metrics
from scripts.benchmarks.timing import seconds_of_each
from utils.config import load_config
from utils.console import environment, say
from utils.files import user_path, write_atomically

EXAMPLES = """\
examples:
  python scripts/model_info.py configs/camvid_cpu/r18_b0.py --json info.json
  python scripts/model_info.py configs/hmkd/cityscapes_r101_b0.py --size 512 1024 --runs 1
  python scripts/model_info.py configs/baselines/camvid_b0.py --runs 20 --cfg-options student.width=128
  python scripts/model_info.py configs/baselines/camvid_b0.py configs/baselines/camvid_r18.py --results b0.json
  python scripts/model_info.py work_dirs/ONE/config.py work_dirs/OTHER/config.py    with the best mIoU of each run
"""
WARM_UP = 2  # untimed runs: the first ones choose kernels and allocate memory
MEANING = {
    "multiply_adds": "of one image; one multiplication with its addition counts as one, as in papers; only "
    "convolutions, linear layers and the products of attention count",
    "latency_ms": "from one uint8 image on the device to its class map, normalisation and upsampling included",
}
RUNTIMES = {"ONNX Runtime": ("onnxruntime", compile_onnx), "OpenVINO": ("openvino", compile_openvino)}
Size = tuple[int, int]
Milliseconds = dict[str, list[float]]  # of every run, by network


def class_names(config: Experiment, source: str) -> tuple[str, ...]:
    """The classes of the config's dataset, without its files: it gets a list of one empty image instead."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "image.png").touch()
        (Path(folder) / "list.txt").write_text("image.png\n")
        data = config.data.model_copy(update={"root": folder, "val_list": "list.txt", "packed": None})
        return build_split(config.model_copy(update={"data": data}), source, "val").class_names


def image_size(config: Experiment, source: str) -> tuple[Size, str]:
    """(H, W) of the first validation image, or of the training crop where there is no data; and where it is from."""
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
    """Parameters, multiply-adds, and the taps with their grids on an image of ``size``."""
    taps = model.spec.taps
    model, scale = network_of(model)
    backbone, auxiliary = count_parameters(model.backbone), count_parameters(model.aux_head or nn.Module())
    deployed = count_parameters(model) - auxiliary
    return {
        "parameters": {"backbone": backbone, "head": deployed - backbone, "deployed": deployed, "auxiliary": auxiliary},
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


def milliseconds(calls: dict[str, Callable[[], object]], runs: int, device: torch.device) -> Milliseconds:
    seconds = seconds_of_each(calls, device, runs, WARM_UP)
    return {name: [1000 * each for each in values] for name, values in seconds.items()}


def measure_latency(
    models: dict[str, SegModel | Teacher], size: Size, device: torch.device, runs: int
) -> Iterator[tuple[str, Milliseconds | str]]:
    """Times the networks as they are deployed, one image at a time, in one runtime after the other.

    Args:
        models: by name.
        size: (H, W) of the image.
        device: of PyTorch; ONNX Runtime and OpenVINO compute on the CPU, with as many threads as PyTorch.
        runs: timed runs in each runtime.

    Yields:
        The name of the runtime, and its times; or the error that prevents them.
    """
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks = {name: network_of(model) for name, model in models.items()}
    modules = {name: Deployable(net, input_scale=scale).to(device) for name, (net, scale) in networks.items()}

    def forward(module: nn.Module, image: Tensor, dtype: torch.dtype | None) -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            module(image)

    def time_pytorch(dtype: torch.dtype | None = None) -> Milliseconds:
        there = image.to(device)
        return milliseconds({name: partial(forward, modules[name], there, dtype) for name in modules}, runs, device)

    yield "eager fp32", time_pytorch()
    for module in modules.values():
        place(module, device, channels_last=True)
    yield "channels_last fp32", time_pytorch()
    yield "channels_last bf16", time_pytorch(torch.bfloat16)

    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(modules)}
        for runtime, (package, compiled) in RUNTIMES.items():
            extra = "onnx" if package == "onnxruntime" else package
            try:
                version, *_ = [import_extra(name, extra).__version__ for name in (package, "onnx", "onnxscript")]
                for name, file in files.items():
                    if not file.is_file():
                        export_onnx(modules[name].cpu(), size, False, file)
                calls = {name: partial(compiled(file), image.numpy()) for name, file in files.items()}
            except ValueError as error:
                yield runtime, str(error)
            else:
                yield f"{runtime} {version.partition('-')[0]} CPU", milliseconds(calls, runs, torch.device("cpu"))


def device_name(device: torch.device) -> str:
    """The name of the device that the times were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    facts = Path("/proc/cpuinfo")  # Linux has the model here, the other systems in platform.processor()
    model = re.search(r"^model name\s*: (.*)", facts.read_text(), re.M) if facts.is_file() else None
    name = model[1] if model else platform.processor() or "CPU"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()})"


def gain(teacher: float, student: float, less: str, more: str) -> str:
    """``'3.4x fewer'``: how much less (or more) the student needs than the teacher; '' if an amount is not known."""
    if 0 in (teacher, student):
        return ""
    return f"{teacher / student:.1f}x {less}" if student <= teacher else f"{student / teacher:.1f}x {more}"


def read_evaluation(path: Path, configs: Iterable[Experiment]) -> dict:
    """What ``eval.py --json`` wrote; ValueError where it is something else, or has measured none of the configs."""
    result = read_json(path)
    if not {"miou", "config", "checkpoint"} <= result.keys():
        raise ValueError(f"{path} has no miou, config and checkpoint; expected a file of eval.py --json")
    if result["config"] not in [config.model_dump(mode="json") for config in configs]:
        raise ValueError(
            f"{path} was measured with none of these configs: evaluate again with the same file and options"
        )
    return result


def measured_miou(config: Experiment, source: str, results: list[dict]) -> float | None:
    """mIoU (0..1) of a config's student, None where it was not measured.

    Args:
        config: the experiment.
        source: its file; in the folder of a run it is the run's best mIoU, in the protocol of its last validation.
        results: of ``eval.py --json``; one of this very config is used first.
    """
    teacher = config.teacher and config.teacher.origin
    for result in results:
        if result["config"] == config.model_dump(mode="json") and result["checkpoint"] != teacher:
            return result["miou"]
    if not Path(source).with_name("metrics.jsonl").is_file():
        return None
    _, measured = last_protocol(read_metrics(Path(source).parent))
    return max((miou / 100 for _, miou in measured), default=None)


def build_networks(configs: dict[str, Experiment]) -> dict[str, tuple[Network, SegModel | Teacher]]:
    """The section and the network of each student by the config's file; of one config alone, of teacher and student."""
    found = {}
    for source, config in configs.items():
        names = class_names(config, source)
        if len(configs) == 1 and config.teacher is not None:
            found["teacher"] = config.teacher, build_teacher(config, source, names, pretrained=False)
        name = "student" if len(configs) == 1 else source
        found[name] = config.student, build_student(config, source, names, pretrained=False)[0]
    return found


def parts_table(networks: dict[str, dict]) -> str:
    """The parts of the networks of one config as text, from the figures of :func:`describe`."""
    rows = [
        [f"{title}, {part}", *(f"{facts[section][part] / unit:.2f}" for facts in networks.values())]
        for title, section, unit, parts in (
            ("M parameters", "parameters", 1e6, ("backbone", "head", "auxiliary")),
            ("GFLOPs", "multiply_adds", 1e9, ("backbone", "head")),
        )
        for part in parts
    ]
    shape = "{channels} /{stride:g} {grid[0]}x{grid[1]}".format
    for tap in networks["student"]["taps"]:
        rows.append([f"{tap}: channels, stride, grid", *(shape(**facts["taps"][tap]) for facts in networks.values())])
    return table(["", *networks], rows)


def run(args: argparse.Namespace) -> None:
    configs = {source: load_config(source, Experiment, args.cfg_options) for source in args.config}
    results = [read_evaluation(path, configs.values()) for path in args.results]
    given = tuple(args.size or ()), "--size"
    sizes = dict(given if args.size else image_size(config, source) for source, config in configs.items())
    if len(sizes) > 1:
        raise ValueError(f"the images of these configs have the sizes {sorted(sizes)} (H, W): give one by --size H W")
    size, origin = sizes.popitem()
    built = build_networks(configs)
    models = {name: model for name, (_, model) in built.items()}
    networks = {name: describe(model, size) for name, model in models.items()}
    if len(configs) == 1:
        say(f"{args.config[0]}\n{parts_table(networks)}\n")

    mious = {source: measured_miou(config, source, results) for source, config in configs.items()}
    latency = dict(measure_latency(models, size, args.device, args.runs))
    medians = {
        form: {name: statistics.median(measured) for name, measured in times.items()}
        for form, times in latency.items()
        if not isinstance(times, str)
    }
    rows = []
    for name, (settings, _) in built.items():
        miou = mious.get(args.config[0] if name == "student" else name)
        rows.append(
            [
                settings.title or "as in its weights",
                f"{networks[name]['parameters']['deployed'] / 1e6:.2f}",
                f"{networks[name]['multiply_adds']['total'] / 1e9:.2f}",
                *(f"{times[name]:.1f}" for times in medians.values()),
                "" if miou is None else f"{100 * miou:.2f}",
                name,
            ]
        )
    say(table(["network", "M parameters", "GFLOPs", *(f"ms, {form}" for form in medians), "mIoU %", ""], rows))
    say(f"image {size[0]}x{size[1]} ({origin}); medians of {args.runs} on {device_name(args.device)}")
    for form in latency.keys() - medians:
        say(f"{form}: {latency[form]}")
    if "teacher" in networks:
        pair = ("teacher", "student")
        fastest = (min(times[name] for times in medians.values()) for name in pair)
        gains = (
            ("parameters", gain(*(networks[name]["parameters"]["deployed"] for name in pair), "fewer", "more")),
            ("GFLOPs", gain(*(networks[name]["multiply_adds"]["total"] for name in pair), "fewer", "more")),
            ("(each in its fastest runtime)", gain(*fastest, "faster", "slower")),
        )
        say(f"student: {', '.join(f'{amount} {of}' for of, amount in gains if amount)}")
    if args.json is not None:
        figures = {
            "image_size": size, "image_size_from": origin, "networks": networks, "miou": mious, "latency_ms": latency,
            "configs": {source: config.model_dump(mode="json") for source, config in configs.items()},
            "meaning": MEANING, "device": device_name(args.device), "environment": environment(),
        }  # fmt: skip
        write_atomically(args.json, (json.dumps(figures, indent=2) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("config", nargs="+", help="Python config file; several: only their students are compared")
    parser.add_argument(
        "--results", type=user_path, nargs="+", default=[], metavar="FILE",
        help="JSON files of eval.py; shows their mIoU beside the configs that they were measured with",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="default: a whole validation image, else data.crop_size"
    )
    parser.add_argument("--device", type=usable_device, default=DEFAULT, help=f"default here: {DEFAULT}")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs in each runtime (default 5)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write all figures and their provenance")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: expected 1 or more")
    if args.size and min(args.size) < 1:
        parser.error(f"--size {args.size[0]} {args.size[1]}: expected two positive numbers of pixels")
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
