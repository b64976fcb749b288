"""Shows runs, finished or still training, in one page, index.html, which needs no network.

A RUN is the work dir of a run, or the folder of a comparison (scripts/compare.py). Of a comparison, the first seed of
each method is shown, with the intervals over all seeds. Beside the page it writes table.md, curves.png, and panel.png:
predictions and their errors. Runs of other data have their own part of the page, and their own files in data_2, ...
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from datasets.base import SegDataset
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.report import markdown_table, prediction_panel
from engine.teacher import build_teacher
from models import count_parameters, read_weights
from models.placement import place
from scripts._command import command_parser, one_line_errors
from scripts._device import DEFAULT
from scripts._runs import Run, read_runs
from scripts.page.measure import Scores, Subject, measure
from scripts.page.part import values_of_part, write_page
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


@dataclass
class Group:
    """Runs that were validated on the same data; ``dataset`` is None where it cannot be built.

    By name: ``teachers`` (the first run that has it), ``sizes`` (million parameters), ``subjects`` (what can be
    measured), ``scores``, ``levels`` (mIoU of the teachers in per cent) and ``unreadable`` images (their errors).
    """

    runs: list[Run]
    dataset: SegDataset | None
    notes: list[str]
    teachers: dict[str, Run] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


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
    """Builds the networks that can be built; for the others, the run gets a note."""
    students, class_names = {}, group.dataset and group.dataset.class_names
    for run in group.runs:
        source, config, network, teacher = str(run.folder / "config.py"), run.config, None, None
        name = next((name for name, first in group.teachers.items() if first.config.teacher == config.teacher), None)
        is_new = config.teacher is not None and name is None and not config.self_taught
        if is_new:  # runs may have the same one
            name = f"teacher of {run.title}"
            group.teachers[name] = run
            found = [100 * line["teacher_miou"] for line in run.log if line.get("teacher_miou") is not None]
            group.levels |= zip([name], found[-1:], strict=False)
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
    group.subjects = group.subjects | students if students else {}


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


def table_rows(group: Group) -> list[list[str]]:
    """A row of ``HEADER`` for each teacher and each run."""
    rows = []
    for name, run in [*group.teachers.items(), *((run.title, run) for run in group.runs)]:
        config, is_teacher = run.config, name in group.teachers
        settings = config.teacher if is_teacher else config.student
        network = getattr(settings, "source", None) or f"{settings.backbone} {settings.head}"
        row = [name, network, f"{group.sizes[name]:.1f} M" if name in group.sizes else ""]
        if is_teacher:
            row += ["", "", "", f"{group.levels[name]:.2f}" if name in group.levels else "not evaluated", ""]
        else:
            types = " + ".join(method.type for method in config.methods)
            taught = f"{types}, {config.teacher.backbone or config.teacher.origin}" if config.teacher else "none"
            best = max(run.curve, key=lambda point: point[1], default=None)
            last = [f"{100 * line['miou']:.2f}" for line in run.log if line.get("miou") is not None]
            row += [taught, str(config.schedule.max_iters), str(config.train.seed)]
            row += [f"{best[1]:.2f} ({best[0]})" if best else "not measured", *(last or ["not measured"])[-1:]]
        rows.append(row)
    return rows


def write_files(group: Group, rows: list[list[str]], notes: list[str], out: Path, images: int) -> None:
    """Writes table.md, and where there is something to show, curves.png and panel.png."""
    text = markdown_table(HEADER, rows) + "".join(f"\n{note}\n" for note in notes)
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
    parser.add_argument("--titles", nargs="+", metavar="NAME", help="names of the runs (default: their folders)")
    parser.add_argument("--images", type=int, default=3, metavar="N", help="validation images in the panel (default 3)")
    args = parser.parse_args(arguments)
    if args.images < 1:
        parser.error(f"--images {args.images}: expected 1 or more")

    with one_line_errors():
        given = [(folder, run) for folder in args.runs for run in read_runs(folder)]
        runs, names = [run for _, run in given], [run.title for _, run in given]
        whole = [str(folder) if folder == run.folder else f"{folder.name}/{run.title}" for folder, run in given]
        titles = args.titles or [
            long if names.count(name) > 1 else name for name, long in zip(names, whole, strict=True)
        ]
        if len(set(titles)) != len(runs):
            parser.error(f"{len(runs)} runs but {len(set(titles))} different titles")
        for run, title in zip(runs, titles, strict=True):
            run.title = title
        groups, parts = group_by_data(runs), []
        for number, group in enumerate(groups, 1):
            build_networks(group, torch.device(DEFAULT))
            if group.subjects:
                measure_networks(group)
            rows, out = table_rows(group), args.out if number == 1 else args.out / f"data_{number}"
            notes = [*group.notes, *(f"{run.title}: {note}" for run in group.runs for note in run.notes)]
            write_files(group, rows, notes, out, args.images)
            parts.append({"rows": rows, "notes": notes, **values_of_part(group, len(groups))})
        file, title, time = args.out / "index.html", f"Report: {', '.join(titles)}", f"{datetime.now():%Y-%m-%d %H:%M}"
        size = write_page(file, title=title, time=time, device=DEFAULT, header=HEADER, parts=parts)
        say(f"wrote {file} ({size / 2**20:.1f} MiB), table.md, curves.png and panel.png to {args.out}")


if __name__ == "__main__":
    main()
