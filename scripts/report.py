"""Shows runs, finished or still going, in one page, index.html, which needs no network.

A RUN is the work dir of a run, or the folder of a comparison (scripts/compare.py), of which the first seed of each
method is shown, with the intervals over all seeds. Beside the page are table.md, curves.png, and panel.png: predictions
and their errors. Runs of other data have their own part in the page, and their own files in data_2, data_3, ...
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: its own folder is on the import path, the repository's root is not
    from _as_module import restart_as_module

    restart_as_module(__file__)

from configs.schema import Network
from datasets.base import SegDataset
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.report import markdown_table, prediction_panel
from engine.teacher import Teacher, build_teacher
from models import SegModel, count_parameters, read_weights
from models.placement import place
from scripts._command import command_parser, one_line_errors
from scripts._device import DEFAULT
from scripts._runs import Run, expand, read_run
from scripts.page.measure import Scores, Subject, measure
from scripts.page.part import cell, percent, values_of_part, write_page
from utils.console import say
from utils.files import write_atomically
from utils.visualize import plot_curves, write_png

EXAMPLES = """\
examples:
  python scripts/report.py work_dirs/camvid_r18 work_dirs/camvid_b4_r18 --out work_dirs/report
  python scripts/report.py work_dirs/compare --out work_dirs/report      a comparison, with its intervals
  python scripts/report.py RUN RUN --out DIR --titles alone HMKD --images 4
"""
HEADER = ["run", "network", "parameters", "distillation", "iterations", "seed", "best val mIoU (step)", "last"]
ON_PAGE = ["mIoU now", "boundary IoU", "ms an image", "state", "time", "cost", "device"]


@dataclass
class Group:
    """Runs that were validated on the same data; ``dataset`` is None where it cannot be built.

    ``rows`` has a row of ``HEADER`` for each teacher and run; ``sizes`` (million parameters), ``subjects`` (what can be
    measured), ``scores`` and ``levels`` (mIoU of the teachers in per cent) are by name.
    """

    runs: list[Run]
    dataset: SegDataset | None
    notes: list[str]
    results: dict[str, dict] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def all_notes(self) -> list[str]:
        return [*self.notes, *(f"{run.title}: {note}" for run in self.runs for note in run.notes)]

    @property
    def page_header(self) -> list[str]:
        return HEADER + ON_PAGE

    @property
    def page_rows(self) -> list[list[Any]]:
        """The rows with what was measured now, and the state, time and cost of the run."""
        runs, wide = {run.title: run for run in self.runs}, []
        for row in self.rows:
            found, run, state = self.scores.get(row[0]), runs.get(row[0]), ["", "", "", ""]
            now = ["–", "–", "–"]
            if found:
                metrics = found.metrics
                now = [percent(metrics.miou), percent(metrics.boundary_miou), f"{found.milliseconds:.1f}"]
            if run:
                step = run.log[-1]["step"] if run.log else 0
                spent, kind = run.seconds * run.processes / 3600, "GPU" if run.device == "cuda" else "CPU"
                state = ["finished" if run.finished else f"at step {step} of {run.config.schedule.max_iters}",
                         cell(f"{run.seconds / 60:.1f} min", data_sort=run.seconds), f"{spent:.2f} {kind} h",
                         f"{run.processes} × {run.facts.get('device', run.device)}"]  # fmt: skip
            wide.append([*row, *now, *state])
        return wide


def describe(settings: Network, network: SegModel | Teacher | None) -> list[str]:
    name = getattr(settings, "source", None) or f"{settings.backbone} {settings.head}"
    return [name, "" if network is None else f"{count_parameters(network) / 1e6:.1f} M"]


def facts(dataset: SegDataset) -> dict[str, Any]:
    """Figures are comparable, and one panel has the right colours, only where all of these are the same."""
    return {
        "data.class_names": dataset.class_names,
        "data.palette": dataset.palette.tolist(),
        "data.id_table": dataset.id_table.tolist(),
        "data.root or data.val_list": [path.resolve() for pair in dataset.files for path in pair if path],
    }


def group_by_data(runs: list[Run]) -> list[Group]:
    """Groups of runs with the same validation set, or where it cannot be built, with the same place of it."""
    groups: list[tuple[dict, Group]] = []
    for run in runs:
        try:
            dataset = build_split(run.config, str(run.folder / "config.py"), "val", check_files=False)
            key, notes = facts(dataset), []
        except (ValueError, OSError) as error:
            dataset, key = None, run.config.data.model_dump(include={"type", "root", "val_list"})
            notes = [f"the validation set cannot be read, so nothing can be measured: {error}"]
        same = next((group for known, group in groups if known == key), None)
        if same:
            same.runs.append(run)
            continue
        differ = [name for name in key if groups and groups[0][0].get(name) != key[name]]
        if differ:
            notes.append(f"not comparable with the first part, because they differ in {', '.join(differ)}")
        groups.append((key, Group([run], dataset, notes)))
    return [group for _, group in groups]


def build_networks(group: Group, device: torch.device) -> None:
    """Builds the networks that can be built, and the rows of the table; the rest becomes notes of the runs."""
    teachers: list[tuple[Network, str]] = []  # runs may have the same one
    teacher_rows, students, class_names = [], {}, group.dataset and group.dataset.class_names
    for run in group.runs:
        source, config, network, teacher, taught = str(run.folder / "config.py"), run.config, None, None, "none"
        name = next((name for settings, name in teachers if settings == config.teacher), None)
        if config.teacher is not None:
            taught = f"{config.distill.type}, {config.teacher.backbone or config.teacher.origin}"
        is_new = config.teacher is not None and name is None and not config.self_taught
        if is_new:
            name = f"teacher of {run.title}"
            teachers.append((config.teacher, name))
        try:
            if class_names:
                network, _ = build_student(config, source, class_names, pretrained=False)
                teacher = build_teacher(config, source, class_names) if is_new else None
            if teacher and teacher.spec.num_classes is not None:
                place(teacher, device, config.train.channels_last)
                group.subjects[name] = Subject(teacher, config, device)
            if network and run.weights:
                load_trained(network, read_weights(run.weights), class_names)
                place(network.eval(), device, config.train.channels_last)
                students[run.title] = Subject(network, config, device, name if name in group.subjects else None)
        except (ValueError, OSError) as error:
            run.notes.append(f"its networks cannot be shown: {error}")
        group.sizes |= {n: count_parameters(net) / 1e6 for n, net in ((run.title, network), (name, teacher)) if net}
        if is_new:
            found = [100 * line["teacher_miou"] for line in run.log if line.get("teacher_miou") is not None]
            if found:
                group.levels[name] = found[-1]
            shown = f"{found[-1]:.2f}" if found else "not evaluated"
            teacher_rows.append([name, *describe(config.teacher, teacher), "", "", "", shown, ""])
        best = max(run.curve, key=lambda point: point[1], default=None)
        last = [f"{100 * line['miou']:.2f}" for line in run.log if line.get("miou") is not None]
        scores = [f"{best[1]:.2f} ({best[0]})" if best else "not measured", *(last[-1:] or ["not measured"])]
        iterations, seed = str(config.schedule.max_iters), str(config.train.seed)
        group.rows.append([run.title, *describe(config.student, network), taught, iterations, seed, *scores])
    group.rows = teacher_rows + group.rows
    if students:
        group.subjects |= students
    else:
        group.subjects.clear()


def measure_networks(group: Group) -> None:
    say(f"measuring {len(group.subjects)} network(s) on {len(group.dataset)} images: {', '.join(group.subjects)}")
    try:
        group.scores, group.unreadable = measure(group.dataset, group.subjects)
    except ValueError as error:
        group.notes.append(f"nothing can be measured: {error}")
    if group.unreadable:
        group.notes.append(
            f"{len(group.unreadable)} of {len(group.dataset)} images cannot be read and are left out of what was "
            f"measured now: {', '.join(group.unreadable)}"
        )
    for subject in group.subjects.values():
        if subject.teacher in group.scores:
            group.levels.setdefault(subject.teacher, 100 * group.scores[subject.teacher].metrics.miou)


def write_files(group: Group, out: Path, images: int) -> None:
    """Writes table.md, and where there is something to show, curves.png and panel.png."""
    text = markdown_table(HEADER, group.rows) + "".join(f"\n{note}\n" for note in group.all_notes)
    write_atomically(out / "table.md", text.encode())
    say(text)
    if curves := {run.title: run.curve for run in group.runs if run.curve}:
        plot_curves(curves, out / "curves.png", "validation mIoU (%)", "Validation mIoU during training")
    if group.scores:
        dataset, protocols = group.dataset, {name: each.config.eval.protocol for name, each in group.subjects.items()}
        readable = [index for index, name in enumerate(dataset.names) if name not in group.unreadable]
        # Evenly spread over the set: neighbours in a list are often frames of one sequence.
        shown = [readable[round((i + 0.5) * len(readable) / images - 0.5)] for i in range(images)]
        networks = {name: subject.network for name, subject in group.subjects.items()}
        write_png(out / "panel.png", prediction_panel(dataset, shown, networks, protocols))


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work dir of a run or of a comparison")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--titles", nargs="+", metavar="NAME", help="what to call the runs (default: their folders)")
    parser.add_argument("--images", type=int, default=3, metavar="N", help="validation images in the panel (default 3)")
    args = parser.parse_args(arguments)
    if args.images < 1:
        parser.error(f"--images {args.images}: expected 1 or more")

    with one_line_errors():
        expanded = {folder: expand(folder) for folder in args.runs}
        found = [each for inside, _ in expanded.values() for each in inside]
        names = [name for name, _ in found]
        titles = args.titles or [name if names.count(name) == 1 else str(folder) for name, folder in found]
        if len(set(titles)) != len(found):
            parser.error(f"{len(found)} runs but {len(set(titles))} different titles")
        runs, parts = [read_run(title, folder) for title, (_, folder) in zip(titles, found, strict=True)], []
        groups = group_by_data(runs)
        for number, group in enumerate(groups, 1):
            folders = {run.folder for run in group.runs}
            for folder, (inside, result) in expanded.items():
                if inside[0][1] not in folders or inside[0][1] == folder:
                    continue
                seeds = ", ".join(f"{name} {run.name}" for name, run in inside)
                group.notes.append(f"{folder}: all but the intervals is of one seed of each method: {seeds}")
                if result:
                    group.results[str(folder)] = result
                else:
                    group.notes.append(f"{folder}: it has no result.json yet, so there are no intervals")
            build_networks(group, torch.device(DEFAULT))
            if group.subjects:
                measure_networks(group)
            out = args.out if number == 1 else args.out / f"data_{number}"
            write_files(group, out, args.images)
            parts.append(values_of_part(group, len(groups)))
        time, file = f"{datetime.now():%Y-%m-%d %H:%M}", args.out / "index.html"
        size = write_page(file, title=f"Report: {', '.join(titles)}", time=time, device=DEFAULT, parts=parts)
        say(f"wrote {file} ({size / 2**20:.1f} MiB), table.md, curves.png and panel.png to {args.out}")


if __name__ == "__main__":
    main()
