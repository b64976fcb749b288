"""The runs of a comparison: planned on equal terms, started, read, and summarised."""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.schema import Experiment
from engine.build import build_distiller, build_student
from engine.data import build_split, build_train_stream
from engine.teacher import build_teacher
from scripts._runs import best_miou, read_metrics
from scripts.comparison.jobs import Job, run_jobs
from scripts.comparison.report import report_text, summarize, write_pictures
from utils.config import ConfigError, changed_values, config_errors, dump_config, load_config, load_section, validate
from utils.console import environment, say
from utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
ALONE = "student alone"
PROBE = {"max_iters": 20, "log_interval": 4}  # of the short runs that measure the time of a step
# What may differ between experiments on equal terms: what is compared, what the command sets, what changes no result.
MAY_DIFFER = (
    "teacher", "distill", "curriculum", "schedule.max_iters", "schedule.epochs", "train.seed",
    "train.verify_teacher", "train.allow_weak_teacher", "checkpoint", "log", "data.unlabelled",
    "data.unlabelled_root", "data.mixing", "train.unlabelled_batch", "train.batch_size",
)  # fmt: skip


class Method(NamedTuple):
    """One line of the comparison: its name, the file that it comes from, and its experiment."""

    name: str
    source: str
    config: Experiment


def with_values(config: Experiment, source: str, **sections: Mapping[str, Any]) -> Experiment:
    """The experiment with some values of its sections changed, and validated again.

    Raises:
        ConfigError: the values do not go together.
    """
    values = config.model_dump()
    for name, value in sections.items():
        values[name] |= value
    return validate(values, Experiment, source)


def read_methods(args: argparse.Namespace) -> list[Method]:
    """The student alone, then what it is compared with.

    Raises:
        ConfigError: two methods of one name, or experiments on unequal terms.
    """
    experiments = [Method(Path(file).stem, file, load_config(file, Experiment, args.cfg_options))
                   for file in args.configs]  # fmt: skip
    for file in args.methods:
        section = {"_delete_": True, **load_section(file, "distill")}
        with config_errors(file, f"in place of the method of {args.config}"):
            config = load_config(args.config, Experiment, [*args.cfg_options, f"distill={section!r}"])
        # The curriculum's terms are those of the method that was replaced.
        experiments.append(Method(Path(file).stem, file, config.model_copy(update={"curriculum": {}})))

    first = experiments[0]
    for _, source, config in experiments:
        lines = changed_values(first.config.model_dump(), config.model_dump())
        lines = [line for line in lines if not line.startswith(MAY_DIFFER)]
        if config.train.images != first.config.train.images:
            lines.append(f"images in a step: {config.train.images}, was {first.config.train.images}")
        if lines:
            raise ConfigError(
                f"{source} is not on equal terms with {first.source}; give both the same (or set it for all by "
                "--cfg-options):\n  " + "\n  ".join(lines)
            )
    alone = student_alone(first)
    # A config without a teacher is the student alone, which runs in any case.
    methods = [Method(ALONE, first.source, alone), *(each for each in experiments if each.config.distill is not None)]
    names = [folder_name(each.name) for each in methods]
    for each in methods:
        if names.count(folder_name(each.name)) > 1:
            raise ConfigError(f"{each.source}: two methods are called {each.name!r}: rename one of the files")
    return methods


def student_alone(method: Method) -> Experiment:
    """The experiment without its teacher: all images of a step have labels."""
    data, train = {"unlabelled": None}, {"batch_size": method.config.train.images, "unlabelled_batch": 0}
    if method.config.data.mixing_domain == "unlabelled":
        data["mixing"] = None
    alone = method.config.model_copy(update={"teacher": None, "distill": None, "curriculum": {}})
    return with_values(alone, method.source, data=data, train=train)


def folder_name(name: str) -> str:
    return name.replace(" ", "_")


def build_all(methods: Sequence[Method]) -> tuple[dict[str, str | None], set[str]]:
    """Builds every method's networks and losses once, so that an error in the last one stops the first.

    Returns:
        sha256 of the weights that the runs start from, by the name in the config (None where no one file holds them);
        and the names of the methods whose teacher has logits, so that it can be evaluated.
    """
    _, source, config = methods[0]
    build_train_stream(config, source)
    class_names, hashes, with_logits = build_split(config, source, "val").class_names, {}, set()
    for name, source, config in methods:
        student, loaded = build_student(config, source, class_names, pretrained=name == ALONE)
        teacher = build_teacher(config, source, class_names)
        build_distiller(config, source, student, teacher)
        given = [(config.student.init_from or config.student.pretrained, loaded)]
        if teacher is not None:
            given.append((config.teacher.origin, teacher.loaded))
            if teacher.spec.num_classes is not None:
                with_logits.add(name)
        hashes |= {weights: report.digest() for weights, report in given if report is not None}
    return hashes, with_logits


def training(name: str, config: Experiment, folder: Path) -> Job:
    """The run of a resolved config in ``folder``, which holds it.

    Raises:
        ValueError: the folder holds a run of another config.
    """
    file = folder / "config.py"
    if file.is_file():
        changed = changed_values(load_config(file, Experiment).model_dump(), config.model_dump())
        if changed:
            raise ValueError(
                f"{folder} holds a run of another config; choose another --out, or remove it. Changed since:\n  "
                + "\n  ".join(changed)
            )
    write_atomically(file, dump_config(config).encode())
    command = [str(ROOT / "train_kd.py"), str(file), "--work-dir", str(folder), "--resume", "auto"]
    look = partial(look_at, folder, config.schedule.max_iters)
    return Job(name, [sys.executable, *command], folder / "student.safetensors", folder / "output.log", look)


def look_at(folder: Path, steps: int) -> tuple[float, str]:
    """The share of a run's steps that are done, and its best mIoU so far, to print."""
    log = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
    mious = [best_miou(line) for line in log if line.get("miou") is not None]
    return log[-1]["step"] / steps if log else 0.0, f", mIoU {max(mious):.2%}" if mious else ""


def evaluation(name: str, config: Path, subject: Sequence[str], result: Path) -> Job:
    command = [str(ROOT / "eval.py"), str(config), *subject, "--json", str(result)]
    return Job(name, [sys.executable, *command], result, result.with_suffix(".log"))


def verify_teachers(methods: Sequence[Method], args: argparse.Namespace, hashes: Mapping, lock: int) -> dict[str, dict]:
    """Evaluates the teachers of these methods, each teacher once; returns the results of eval.py by method.

    Raises:
        ValueError: one is no better than chance, and ``train.allow_weak_teacher`` is False.
    """
    jobs = {}
    for name, _, config in methods:
        facts = config.teacher, hashes[config.teacher.origin], config.data, config.eval, config.train.precision
        stem = args.out / "teachers" / hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
        write_atomically(stem.with_suffix(".py"), dump_config(config).encode())
        title = f"teacher {config.teacher.origin}"
        jobs[name] = evaluation(title, stem.with_suffix(".py"), ["--teacher"], stem.with_suffix(".json"))
    run_jobs(list({job.result: job for job in jobs.values()}.values()), args.jobs, lock)
    found = {name: json.loads(job.result.read_text()) for name, job in jobs.items()}
    for name, source, config in methods:
        miou, chance = found[name]["miou"], 1 / len(found[name]["class_names"])
        if config.train.verify_teacher and not config.train.allow_weak_teacher and miou <= chance:
            raise ValueError(
                f"{source}: the teacher {config.teacher.origin} has mIoU {miou:.2%} on the validation set, no better "
                f"than chance ({chance:.2%}): check its weights, class order and normalization, or set "
                "train.allow_weak_teacher=True"
            )
    return found


def scalars(folder: Path, tag: str) -> list[float]:
    """What a run wrote to TensorBoard under ``tag``, in order."""
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    if tag not in board.Tags()["scalars"]:
        raise ValueError(f"{folder / 'tensorboard'} holds no {tag}: was it removed? Remove {folder} to run it again")
    return [event.value for event in board.Scalars(tag)]


def step_seconds(folder: Path, config: Experiment) -> float:
    """The median, over the lines of a run's log, of the seconds of a training step, validation left out."""
    return config.train.images / median(scalars(folder, "train/images_per_s"))


def iterations(methods: Sequence[Method], args: argparse.Namespace, lock: int) -> dict[str, int]:
    """Steps of each method within the budget; those of a budget in seconds are measured once and kept.

    Raises:
        ValueError: the budget was another one so far, or is too small for a step.
    """
    if args.budget_iters:
        return {each.name: args.budget_iters for each in methods}
    file, jobs = args.out / "budget.json", {}
    budget = json.loads(file.read_text()) if file.is_file() else {"seconds": args.budget_seconds, "step_seconds": {}}
    if budget["seconds"] != args.budget_seconds:
        raise ValueError(f"{file}: the budget was {budget['seconds']:g} seconds so far; choose another --out")
    for name, source, config in methods:
        if name not in budget["step_seconds"]:
            probe = with_values(
                config, source, schedule={"max_iters": PROBE["max_iters"], "epochs": None, "warmup_iters": 0},
                train={"verify_teacher": False},
                log={"interval": PROBE["log_interval"], "panel_images": 0, "trackers": ("tensorboard",)},
            )  # fmt: skip
            folder = args.out / "probes" / folder_name(name)
            jobs[name] = training(f"{name}, time of a step", probe, folder), probe, folder
    run_jobs([job for job, _, _ in jobs.values()], 1, lock)  # one at a time: they would slow each other down
    budget["step_seconds"] |= {name: step_seconds(folder, probe) for name, (_, probe, folder) in jobs.items()}
    write_atomically(file, (json.dumps(budget, indent=2) + "\n").encode())
    steps = {each.name: int(args.budget_seconds / budget["step_seconds"][each.name]) for each in methods}
    for name, count in steps.items():
        if count < 1:
            raise ValueError(f"--budget-seconds {args.budget_seconds:g}: {name} takes longer for one step; give more")
    return steps


def has_truth(method: Method) -> bool:
    """Whether there is a test set whose labels are public."""
    data = method.config.data
    if data.test_list is None or not (Path(data.root) / data.test_list).is_file():
        return False
    return all(label is not None for _, label in build_split(method.config, method.source, "test").files)


def read_evaluation(file: Path) -> dict[str, Any]:
    """What eval.py found, in the form of a validation of the run's log."""
    found = json.loads(file.read_text())
    per_class = dict(zip(found["class_names"], found["per_class_iou"], strict=True))
    return {"miou": found["miou"], "per_class_iou": per_class, "sha256": found["sha256"]}


def read_run(folder: Path, config: Experiment, test: Path | None) -> dict[str, Any]:
    """The figures of a finished run."""
    validations = [line for line in read_metrics(folder) if line.get("miou") is not None]
    if not validations or validations[-1]["step"] != config.schedule.max_iters:
        raise ValueError(f"{folder / 'metrics.jsonl'} does not end with a validation: remove {folder} to run it again")
    last, best = validations[-1], max(validations, key=best_miou)
    return {
        "iterations": last["step"],
        "val": {name: last[name] for name in ("miou", "per_class_iou")},
        "best": {"step": best["step"], "miou": best_miou(best)},
        "test": read_evaluation(test) if test else None,
        "curve": [[line["step"], line["miou"]] for line in validations],
        "step_seconds": step_seconds(folder, config),
        "peak_memory_mib": max(scalars(folder, "train/peak_memory_mib")),
        "student_sha256": hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest(),
        "environment": dict(line.split(": ", 1) for line in (folder / "env.txt").read_text().splitlines()),
    }


def compare(args: argparse.Namespace, lock: int) -> None:
    methods = read_methods(args)
    hashes, with_logits = build_all(methods)
    teachers = verify_teachers([each for each in methods if each.name in with_logits], args, hashes, lock)
    steps = iterations(methods, args, lock)
    runs = {}
    for seed in args.seeds:  # all methods with the first seed first: a look at the runs soon says something
        for name, source, config in methods:
            resolved = with_values(
                config, source, schedule={"max_iters": steps[name], "epochs": None},
                train={"seed": seed, "verify_teacher": False},
                log={"trackers": tuple(dict.fromkeys(("tensorboard", *config.log.trackers)))},  # read for the times
            )  # fmt: skip
            runs[name, seed] = resolved, args.out / "runs" / folder_name(name) / f"seed_{seed}"
    jobs = [training(f"{name}, seed {seed}", *run) for (name, seed), run in runs.items()]
    finished = sum(job.result.is_file() for job in jobs)
    say(f"{len(jobs)} runs, {finished} of them finished before; {args.jobs} at a time")
    run_jobs(jobs, args.jobs, lock)

    tests = {key: folder / "test.json" for key, (_, folder) in runs.items()} if has_truth(methods[0]) else {}
    jobs = []
    for (name, seed), file in tests.items():
        subject = [str(file.parent / "last.pt"), "--split", "test"]
        jobs.append(evaluation(f"{name}, seed {seed}, test set", file.parent / "config.py", subject, file))
    run_jobs(jobs, args.jobs, lock)

    config = methods[0].config
    result = {
        "protocol": config.protocol,
        "split": {"val": config.data.val_list, "test": config.data.test_list if tests else None},
        "crop_size": config.data.crop_size, "eval": config.eval.protocol, "precision": config.train.precision,
        "device": "cuda" if torch.cuda.is_available() else "cpu", "jobs": args.jobs, "seeds": args.seeds,
        "budget": {"iterations": args.budget_iters, "seconds": args.budget_seconds}, "weights_sha256": hashes,
        "environment": environment(),
        "methods": {
            name: {
                "source": source, "teacher": teachers.get(name), "config": config.model_dump(),
                "runs": {seed: read_run(folder, resolved, tests.get((name, seed)))
                         for seed in args.seeds for resolved, folder in [runs[name, seed]]},
            }
            for name, source, config in methods
        },
    }  # fmt: skip
    alone = result["methods"][ALONE]["runs"]
    for method in result["methods"].values():
        method["summary"] = summarize(method["runs"], alone)
    text = report_text(result)
    write_atomically(args.out / "table.md", text.encode())
    write_pictures(result, args.out)
    write_atomically(args.out / "result.json", (json.dumps(result, indent=2, default=asdict) + "\n").encode())
    say(text)
    say(f"wrote table.md, result.json and three pictures to {args.out}")
