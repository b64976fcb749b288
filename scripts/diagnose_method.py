"""Shows what a distillation method can teach: how its own modules change its terms and targets, without the student.

Student and teacher are frozen, and only the method's own modules are trained: on the networks' real features, and on
unrelated random features. Terms and targets are measured on batches that are not used for this training.

Terms: the value before -> after. If a term falls on random features, the method's own modules alone can lower it, so it
may teach the student nothing. Before the training, on one labelled batch: the norm of the term's weighted gradient on
the student, and the cosine of this gradient with the gradient of the cross-entropy with the labels; then the same
cosine with the term on other images, without their labels (needs pixels='inside').

Targets: the teacher's feature map after each step that turns it into the student's target, before -> after on real
features (``scripts/_targets.py`` defines the figures).
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema import Experiment
from datasets import make_loader
from datasets.samplers import PositionBatches
from engine.build import build_distiller, build_student
from engine.data import build_split, build_train_stream
from engine.report import table
from engine.teacher import Teacher, build_teacher
from losses.base import Method
from losses.functional import cross_entropy
from losses.labels import Labels
from models import SegModel, SegOutput
from scripts._command import add_config_options, command_parser, one_line_errors
from scripts._device import DEFAULT
from scripts._targets import Outputs, measure_targets
from utils.config import ConfigError, config_errors, load_config, load_section
from utils.console import environment, say
from utils.files import user_path, write_atomically
from utils.names import OUTSIDE, VOID

EXAMPLES = """examples:
  python scripts/diagnose_method.py configs/demo/hmkd.py
  python scripts/diagnose_method.py configs/demo/hmkd.py --cfg-options distill.anchor=None
  python scripts/diagnose_method.py configs/demo/hmkd.py --methods configs/_base_/methods/{kd,cwd}.py --json found.json
"""
HELD_OUT = 4  # batches on which terms and targets are measured
COLLAPSE = 0.8  # a term that falls below this share of its first value on random features is marked


def unrelated(output: SegOutput, generator: torch.Generator) -> SegOutput:
    """Standard normal noise in the shape of a network's output."""

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x.device)

    logits = None if output.logits is None else noise(output.logits)
    return SegOutput(logits, {name: noise(tap) for name, tap in output.taps.items()}, None)


def measure(method: Method, batches: list[Outputs]) -> dict[str, float]:
    """Each term's mean over batches, weighted as in training; the method does not change."""
    method, sums, counts = copy.deepcopy(method), {}, {}
    with torch.no_grad():
        for student, teacher, labels in batches:
            count = method.counts(labels)
            for name, term in method(student, teacher, labels).items():
                sums[name] = sums.get(name, 0.0) + (term * count[name]).item()
                counts[name] = counts.get(name, 0.0) + count[name].item()
    return {name: sums[name] / counts[name] if counts[name] else 0.0 for name in sums}


def train_modules(method: Method, batches: Callable[[int], Outputs], steps: int, lr: float) -> None:
    """Trains the method's own modules on batches 0 .. steps - 1."""
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr) if parameters else None
    for step in range(steps if parameters else 0):
        terms = method(*batches(step))
        loss = sum(method.weights[name] * term for name, term in terms.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def gradient(term: Tensor, network: SegModel) -> Tensor:
    """Of all the network's parameters, in one vector."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not term.requires_grad:  # it reads frozen parts only
        return torch.cat([torch.zeros_like(parameter).flatten() for parameter in parameters])
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([each.float().flatten() for each in gradients])


def calibrated(method: Method, batches: Callable[[int], Outputs], steps: int) -> Method:
    """A copy of an untrained method that has measured the teacher on the training batches."""
    method = copy.deepcopy(method)
    method.calibrate(lambda: (batches(step)[1:] for step in range(steps)))
    return method


def teach(teacher: Teacher, sample: dict, device: torch.device) -> SegOutput:
    """The teacher's output on a batch, as in training."""
    images, *large = (sample[name].to(device) for name in ("image", "large_image") if name in sample)
    return teacher(images, None, *large)


def measure_gradients(
    method: Method, student: SegModel, teacher: Teacher, labelled: dict, unlabelled: dict
) -> dict[str, dict[str, float | None]]:
    """Norm and cosines of each term's gradient; a cosine is None where the gradient is 0 or the method reads labels."""
    facts = {name: {} for name in method.weights}
    for key, sample in (("cosine", labelled), ("cosine_unlabelled", unlabelled)):
        images, ids = (sample[name].to(next(student.parameters()).device) for name in ("image", "label"))
        output = student(images)
        if key == "cosine":
            task = gradient(cross_entropy(output.logits, Labels(ids).at(1)), student)
        else:
            ids = ids.masked_fill(ids < OUTSIDE, VOID)
        terms = method(output, teach(teacher, sample, images.device), Labels(ids))
        for name, weight in method.weights.items():
            slope = weight * gradient(terms[name], student)
            facts[name].setdefault("grad_norm", slope.norm().item())
            facts[name][key] = F.cosine_similarity(slope, task, dim=0).item() if slope.any() else None
    return facts


def diagnose(
    method: Method, student: SegModel, teacher: Teacher, samples: list[dict], steps: int, lr: float
) -> dict[str, dict[str, dict]]:
    """``'terms'`` and ``'targets'``, as this module's text defines them.

    Args:
        method: untrained; it is copied.
        student, teacher: frozen, on the method's device.
        samples: ``steps`` batches, ``HELD_OUT`` that are measured on, and the two of ``measure_gradients``.
    """
    device = next(student.parameters()).device

    def real(step: int) -> Outputs:
        images, labels = (samples[step][name].to(device) for name in ("image", "label"))
        with torch.no_grad():
            return student(images), teach(teacher, samples[step], device), Labels(labels)

    def random(step: int) -> Outputs:
        generator = torch.Generator().manual_seed(step)
        one, other, labels = real(step)
        return unrelated(one, generator), unrelated(other, generator), labels

    terms = measure_gradients(calibrated(method, real, steps), student, teacher, *samples[-2:])
    targets = {}
    for kind, batches in (("real", real), ("random", random)):
        torch.manual_seed(0)
        trained = calibrated(method, batches, steps)
        held_out = [batches(step) for step in range(steps, steps + HELD_OUT)]
        untrained, before = copy.deepcopy(trained), measure(trained, held_out)
        train_modules(trained, batches, steps, lr)
        torch.manual_seed(0)
        after = measure(trained, held_out)
        targets = targets or measure_targets(untrained, trained, held_out)
        for name, facts in terms.items():
            facts |= {"weight": method.weights[name], f"{kind}_before": before[name], f"{kind}_after": after[name]}
    return {"terms": terms, "targets": targets}


def share(facts: dict[str, float], kind: str) -> float:
    before, after = facts[f"{kind}_before"], facts[f"{kind}_after"]
    return after / before if before else 1.0


def collapses(facts: dict[str, float]) -> bool:
    """Whether a term that teaches the student falls on random features; an anchor learns from labels and may fall."""
    return share(facts, "random") < COLLAPSE and facts["grad_norm"] > 0


def term_rows(name: str, found: dict[str, dict[str, float | None]]) -> list[list[str]]:
    return [
        [
            name, term, f"{facts['weight']:g}",
            *(f"{facts[f'{kind}_before']:.4g} -> {facts[f'{kind}_after']:.4g}" for kind in ("real", "random")),
            f"{share(facts, 'real'):.3f}",
            f"{share(facts, 'random'):.3f}{' !' if collapses(facts) else ''}",
            f"{facts['grad_norm']:.4g}",
            *("-" if facts[key] is None else f"{facts[key]:.2f}" for key in ("cosine", "cosine_unlabelled")),
        ]
        for term, facts in found.items()
    ]  # fmt: skip


def target_rows(name: str, found: dict[str, dict[str, dict[str, float]]]) -> list[list[str]]:
    return [
        [
            name, term, step,
            *(f"{facts[f'{key}_before']:.3g} -> {facts[f'{key}_after']:.3g}"
              for key in ("spatial_kept", "dimensions", "class_share")),
            f"{facts['cka']:.3f}",
        ]
        for term, steps in found.items() for step, facts in steps.items()
    ]  # fmt: skip


def with_method(args: argparse.Namespace, file: str) -> Experiment:
    """The experiment with the method of another config in place of its own."""
    section = {"_delete_": True, **load_section(file, "distill")}
    with config_errors(file, "in place of the method"):
        return load_config(args.config, Experiment, [f"distill={section!r}", *args.cfg_options])


def run(args: argparse.Namespace) -> None:
    config = load_config(args.config, Experiment, args.cfg_options)
    if config.distill is None:
        raise ConfigError(f"{args.config}: distill is None: there is no method to diagnose")
    methods = {args.config: config}
    if args.methods:
        methods = {file: with_method(args, file) for file in args.methods}
    stream = build_train_stream(config, args.config)
    names = build_split(config, args.config, "val").class_names
    torch.manual_seed(config.train.seed)
    device = torch.device(DEFAULT)
    student, loaded = build_student(config, args.config, names)
    teacher = build_teacher(config, args.config, names)
    student, teacher = student.to(device).eval(), teacher.to(device)
    for report in filter(None, (loaded, teacher.loaded)):
        say(str(report))
    labelled, unlabelled = config.train.batch_size, config.train.unlabelled_batch
    positions = [
        *PositionBatches(0, args.steps + HELD_OUT, labelled, unlabelled=unlabelled),
        *PositionBatches(0, 1, labelled),  # and those of measure_gradients
        *PositionBatches(1, 2, 0 if unlabelled else labelled, unlabelled=unlabelled),
    ]
    samples = list(make_loader(stream, positions, workers=0, pin_memory=False))

    results, terms, targets = {}, [], []
    for file, each in methods.items():
        method = build_distiller(each, file, student, teacher).method.to(device)
        results[file] = diagnose(method, student, teacher, samples, args.steps, args.lr)
        terms += term_rows(Path(file).stem, results[file]["terms"])
        targets += target_rows(Path(file).stem, results[file]["targets"])
    header = ["method", "term", "weight", "real features", "random features", "real", "random", "gradient on student"]
    say(table([*header, "cosine", "unlabelled"], terms))
    say(f"after / before, {args.steps} steps of the method's own modules (Adam {args.lr:g}); ! falls below {COLLAPSE}")
    say(table(["method", "target", "step", "spatial kept", "dimensions", "class share", "CKA"], targets))
    if args.json:
        result = {"config": config.model_dump(), "steps": args.steps, "lr": args.lr, "methods": results,
                  "held_out_batches": HELD_OUT, "device": device.type, "environment": environment()}  # fmt: skip
        write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("config", help="Python config file with a teacher")
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="FILE", help="configs whose distill section replaces CONFIG's"
    )
    parser.add_argument("--steps", type=int, default=80, metavar="N", help="training steps (default 80)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of Adam (default 0.01)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write all figures and their provenance")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.steps < 1 or args.lr <= 0:
        parser.error(f"--steps {args.steps} --lr {args.lr}: expected both positive")
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
