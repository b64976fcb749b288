"""Shows runs, finished or still going, in one page: index.html, which needs no network.

A RUN is the work dir of a run, or the folder of a comparison (scripts/compare.py), of which one seed of each method is
shown, with the intervals over all seeds. The page has what ran, curves, figures by class and by image, confusion
matrices, pictures of the worst and most improved images, and accuracy against time and size. Beside it are table.md,
curves.png, and panel.png (predictions and their errors). Runs of other data have a part of their own in the page, and
these three files in data_2, data_3, ...
"""

from dataclasses import dataclass, field
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
from scripts._runs import Run, expand, read_run, unique_titles
from scripts.page.document import part_of_page, write_page
from scripts.page.html import Html
from scripts.page.measure import Scores, Subject, measure
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
    """Runs that were validated on the same data.

    Attributes:
        runs: one or more.
        dataset: their validation set; None where it cannot be built.
        results: of the comparisons they are from, by folder.
        notes: what is missing or needs to be known, in sentences.
        rows: of ``HEADER``.
        subjects: the networks with weights and logits, the teachers first, by name.
        sizes: million parameters, by name.
        teacher_of: a student's teacher, by the student's name, where both can be measured.
        levels: mIoU of the teachers in per cent, where it is known.
        scores: of the subjects, by name.
        unreadable: errors of the images that cannot be read, by name.
    """

    runs: list[Run]
    dataset: SegDataset | None
    results: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    subjects: dict[str, Subject] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    teacher_of: dict[str, str] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


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
    """Groups of runs with the same validation set; those whose set cannot be built are grouped by their config."""
    groups: list[tuple[dict, Group]] = []
    for run in runs:
        try:
            dataset = build_split(run.config, str(run.folder / "config.py"), "val", check_files=False)
            key, problem = facts(dataset), []
        except (ValueError, OSError) as error:
            dataset, key = None, run.config.data.model_dump(include={"type", "root", "val_list"})
            problem = [f"the validation set cannot be read, so there are no figures by class or image: {error}"]
        for known, group in groups:
            if known == key:
                group.runs.append(run)
                break
        else:
            differ = [name for name in key if groups and groups[0][0].get(name) != key[name]]
            other = [f"other data than in the first part: they differ in {', '.join(differ)}"] if differ else []
            groups.append((key, Group([run], dataset, notes=other + problem)))
    return [group for _, group in groups]


def build_networks(group: Group, device: torch.device) -> None:
    """Builds the networks of the runs that have saved one, and the rows of the table."""
    teachers: list[tuple[Network, str]] = []  # runs may have the same one
    teacher_rows, students = [], {}
    class_names = () if group.dataset is None else group.dataset.class_names
    for run in group.runs:
        source, config, network = str(run.folder / "config.py"), run.config, None
        taught = "none"
        if config.teacher is not None:
            taught = f"{config.distill.type}, {config.teacher.backbone or config.teacher.origin}"
        try:
            if class_names:
                network, _ = build_student(config, source, class_names, pretrained=False)
                group.sizes[run.title] = count_parameters(network) / 1e6
            if network is not None and run.weights is not None:
                load_trained(network, read_weights(run.weights), class_names)
                place(network, device, config.train.channels_last)
                students[run.title] = Subject(network.eval(), config, device)
        except (ValueError, OSError) as error:
            run.notes.append(f"its network cannot be shown: {error}")
        if config.teacher is not None and config.teacher not in [settings for settings, _ in teachers]:
            name, teacher = f"teacher of {run.title}", None
            teachers.append((config.teacher, name))
            try:
                teacher = build_teacher(config, source, class_names) if class_names else None
            except (ValueError, OSError) as error:
                run.notes.append(f"its teacher cannot be shown: {error}")
            found = [100 * line["teacher_miou"] for line in run.log if line.get("teacher_miou") is not None]
            if found:
                group.levels[name] = found[-1]
            if not config.self_taught:
                shown = f"{found[-1]:.2f}" if found else "not evaluated"
                teacher_rows.append([name, *describe(config.teacher, teacher), "", "", "", shown, ""])
            if teacher is not None and teacher.spec.num_classes is not None:
                place(teacher, device, config.train.channels_last)
                group.subjects[name] = Subject(teacher, config, device)
                group.sizes[name] = count_parameters(teacher) / 1e6
        best = max(run.curve, key=lambda point: point[1], default=None)
        last = [f"{100 * line['miou']:.2f}" for line in run.log if line.get("miou") is not None]
        scores = [f"{best[1]:.2f} ({best[0]})" if best else "not measured", *(last[-1:] or ["not measured"])]
        iterations, seed = str(config.schedule.max_iters), str(config.train.seed)
        group.rows.append([run.title, *describe(config.student, network), taught, iterations, seed, *scores])
        name = next((name for settings, name in teachers if settings == config.teacher), None)
        if run.title in students and name in group.subjects:
            students[run.title] = students[run.title]._replace(teacher=name)
            group.teacher_of[run.title] = name
    group.rows = teacher_rows + group.rows
    group.subjects |= students


def measure_networks(group: Group) -> None:
    if group.dataset is None or not group.subjects:
        return
    say(f"measuring {len(group.subjects)} network(s) on {len(group.dataset)} images: {', '.join(group.subjects)}")
    try:
        group.scores, group.unreadable = measure(group.dataset, group.subjects)
    except ValueError as error:
        group.notes.append(f"the networks cannot be measured: {error}")
        return
    if group.unreadable:
        group.notes.append(
            f"{len(group.unreadable)} of {len(group.dataset)} images cannot be read and are left out of the figures "
            "that were measured now: " + ", ".join(group.unreadable)
        )
    taught = {name: 100 * group.scores[name].metrics.miou for name in group.teacher_of.values()}
    group.levels = taught | group.levels


def write_files(group: Group, out: Path, images: int) -> list[str]:
    """Writes table.md, curves.png and panel.png; returns the names of those for which there was something to show."""
    notes = [*group.notes, *(f"{run.title}: {note}" for run in group.runs for note in run.notes)]
    text = markdown_table(HEADER, group.rows) + "".join(f"\n{note}\n" for note in notes)
    write_atomically(out / "table.md", text.encode())
    say(text)
    written = ["table.md"]
    curves = {run.title: run.curve for run in group.runs if run.curve}
    if curves:
        plot_curves(curves, out / "curves.png", "validation mIoU (%)", "Validation mIoU during training")
        written.append("curves.png")
    if group.scores:
        dataset, protocols = group.dataset, {name: s.config.eval.protocol for name, s in group.subjects.items()}
        readable = [i for i, name in enumerate(dataset.names) if name not in group.unreadable]
        # Evenly spread over the set: neighbours in a list are often frames of one sequence.
        shown = [readable[round((i + 0.5) * len(readable) / images - 0.5)] for i in range(images)]
        networks = {name: subject.network for name, subject in group.subjects.items()}
        write_png(out / "panel.png", prediction_panel(dataset, shown, networks, protocols))
        written.append("panel.png")
    return written


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work dir of a run, or of a comparison")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--titles", nargs="+", metavar="NAME", help="what to call the runs (default: their folders)")
    parser.add_argument("--images", type=int, default=3, metavar="N", help="validation images in panel.png (default 3)")
    args = parser.parse_args(arguments)
    if args.images < 1:
        parser.error(f"--images {args.images}: expected 1 or more")

    with one_line_errors():
        found, results, notes = [], {}, []
        for folder in args.runs:
            inside, result, about = expand(folder)
            results |= {} if result is None else {(str(folder), inside[0][1]): result}
            found, notes = found + inside, notes + about
        titles = args.titles or unique_titles(found)
        if len(set(titles)) != len(found):
            parser.error(f"{len(found)} runs but {len(set(titles))} different titles")
        runs = [read_run(title, folder) for title, (_, folder) in zip(titles, found, strict=True)]
        groups, parts, device = group_by_data(runs), [], torch.device(DEFAULT)
        for number, group in enumerate(groups, 1):
            folders = {run.folder for run in group.runs}
            group.results = {title: result for (title, first), result in results.items() if first in folders}
            build_networks(group, device)
            measure_networks(group)
            out = args.out if number == 1 else args.out / f"data_{number}"
            say(f"wrote {', '.join(write_files(group, out, args.images))} to {out}")
            say("choosing the images to show")
            parts.append(part_of_page(group, HEADER, number, len(groups)))
        page = write_page(args.out / "index.html", titles, notes, list(map(Html, parts)))
        say(f"wrote {args.out / 'index.html'} ({page / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
