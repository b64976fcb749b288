"""Compares finished runs on the same data: a table, training curves, and a panel of predictions and their errors.

The teachers of the runs come first.
"""

import json
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its own folder is on the import path, the repository's root is not
    from _as_module import restart_as_module

    restart_as_module(__file__)

from configs.schema import Experiment, Network
from datasets.base import SegDataset
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.report import prediction_panel
from engine.teacher import Teacher, build_teacher
from models import SegModel, count_parameters, read_weights
from scripts._command import command_parser, one_line_errors
from utils.config import load_config
from utils.files import write_atomically
from utils.visualize import plot_curves, write_png

EXAMPLES = """\
examples:
  python scripts/report.py work_dirs/camvid_r18 work_dirs/camvid_b4_r18 --out work_dirs/report
      writes table.md, curves.png and panel.png there
  python scripts/report.py RUN RUN --out DIR --titles alone HMKD --images 4
"""


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of ``metrics.jsonl``: a run that writes, or was killed, may leave half of one at the end."""
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_protocol(log: list[dict]) -> tuple[list[dict], list[tuple[int, float]]]:
    """The entries since the validation was changed for the last time, because mIoUs before it do not compare.

    Returns:
        The entries, and (step, mIoU in per cent) of their validations; first the best one before, as measured again.
    """
    changes = [number for number, line in enumerate(log) if line.get("new_protocol")]
    entries = log[changes[-1] :] if changes else log
    measured = [(line["step"], best_miou(line)) for line in entries if line.get("miou") is not None]
    if changes and "best_miou" in entries[0]:
        measured.insert(0, (entries[0]["best_step"], entries[0]["best_miou"]))
    return entries, [(step, 100 * miou) for step, miou in measured]


def best_miou(line: dict) -> float:
    """mIoU (0..1) of a validation: of the student, or of the average of its weights where that is better."""
    return max(line["miou"], line.get("averaged_miou", 0.0))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def describe(settings: Network, network: SegModel | Teacher) -> list[str]:
    name = getattr(settings, "source", None) or f"{settings.backbone} {settings.head}"
    return [name, f"{count_parameters(network) / 1e6:.1f} M"]


def check_same_data(first: SegDataset, other: SegDataset, runs: tuple[Path, Path]) -> None:
    """Figures are comparable, and one panel has the right colours, only on the same files, classes and colours.

    Raises:
        ValueError: the validation sets of two runs differ; names in what.
    """

    def facts(dataset: SegDataset) -> dict[str, Any]:
        return {
            "data.class_names": dataset.class_names,
            "data.palette": dataset.palette.tolist(),
            "data.id_table": dataset.id_table.tolist(),
            "data.root or data.val_list": [path.resolve() for pair in dataset.files for path in pair if path],
        }

    one, two = facts(first), facts(other)
    if differ := [key for key in one if one[key] != two[key]]:
        raise ValueError(
            f"{runs[0]} and {runs[1]} were validated on other data: they differ in {', '.join(differ)}, so one table "
            "and one panel would mislead: make one report for each data set"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work dir of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--titles", nargs="+", metavar="NAME", help="what to call the runs (default: their folders)")
    parser.add_argument("--images", type=int, default=3, metavar="N", help="validation images in the panel (default 3)")
    args = parser.parse_args(arguments)
    titles = args.titles or [run.name for run in args.runs]
    if args.images < 1:
        parser.error(f"--images {args.images}: expected 1 or more")
    if len(titles) != len(args.runs):
        parser.error(f"{len(args.runs)} runs but {len(titles)} titles")

    with one_line_errors():
        first: SegDataset | None = None
        teachers, students, protocols, curves, teacher_rows, rows, notes = {}, {}, {}, {}, [], [], []
        shown_teachers = []
        for title, run in zip(titles, args.runs, strict=True):
            source = str(run / "config.py")
            config = load_config(source, Experiment)
            if not (run / "student.safetensors").is_file():
                raise ValueError(f"{run} holds no student.safetensors: the run is not finished")
            dataset = build_split(config, source, "val")
            first = first or dataset
            check_same_data(first, dataset, (args.runs[0], run))
            network, _ = build_student(config, source, dataset.class_names, pretrained=False)
            load_trained(network, read_weights(run / "student.safetensors"), dataset.class_names)
            log, curves[title] = last_protocol(read_metrics(run))
            if not curves[title]:
                raise ValueError(f"{run / 'metrics.jsonl'} holds no validation mIoU: the run never got to one")
            if log[0].get("new_protocol"):
                notes.append(
                    f"{title}: resumed at step {log[0]['step']} with another evaluation or validation set; its mIoUs "
                    "are those from there on, and that of its best network before, measured again."
                )
            taught = "none"
            teacher = None
            if config.teacher is not None:
                taught = f"{config.distill.type}, {config.teacher.backbone or config.teacher.origin}"
                if config.teacher not in shown_teachers:  # runs may have the same one
                    shown_teachers.append(config.teacher)
                    teacher = build_teacher(config, source, dataset.class_names)
            if teacher is not None:
                found = [f"{100 * line['teacher_miou']:.2f}" for line in log if "teacher_miou" in line]
                name = f"teacher of {title}"
                if teacher.spec.num_classes is not None:
                    teachers[name], protocols[name] = teacher, config.eval.protocol
                teacher_rows.append(
                    [name, *describe(config.teacher, teacher), "", "", "", *(found[-1:] or ["not evaluated"]), ""]
                )

            students[title], protocols[title] = network.eval(), config.eval.protocol
            best_step, best = max(curves[title], key=lambda point: point[1])
            last = [f"{100 * line['miou']:.2f}" for line in log if line.get("miou") is not None]
            iterations, seed = str(config.schedule.max_iters), str(config.train.seed)
            scores = [f"{best:.2f} ({best_step})", *(last[-1:] or ["not measured"])]
            rows.append([title, *describe(config.student, network), taught, iterations, seed, *scores])

        header = ["run", "network", "parameters", "distillation", "iterations", "seed", "best val mIoU (step)", "last"]
        text = markdown_table(header, teacher_rows + rows) + "".join(f"\n{note}\n" for note in notes)
        write_atomically(args.out / "table.md", text.encode())
        plot_curves(curves, args.out / "curves.png", "validation mIoU (%)", "Validation mIoU during training")
        # Evenly spread over the set: neighbours in a list are often frames of one sequence.
        shown = [round((i + 0.5) * len(dataset) / args.images - 0.5) for i in range(args.images)]
        picture = prediction_panel(dataset, shown, teachers | students, protocols)
        write_png(args.out / "panel.png", picture)
        print(text, end="")
        print(f"wrote table.md, curves.png and panel.png to {args.out}")


if __name__ == "__main__":
    main()
