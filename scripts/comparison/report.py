"""The results of a comparison: intervals over seeds, a Markdown table, pictures."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from engine.report import markdown_table
from scripts.comparison.intervals import Interval, mean_interval
from utils.visualize import CURVE_COLORS, dress_curves, save_figure

# A class with a larger mean loss of IoU than this against the student alone is marked, unless it may be chance.
NEGATIVE_TRANSFER = 0.01
MARKERS = "osD^vPX<>"  # nine markers and seven colours: their pairs repeat after 63 methods
LINES = ("-", "--", "-.", ":")
Runs = Mapping[int, Mapping[str, Any]]  # figures of a run by seed, see ``read_run``


def summarize(runs: Runs, alone: Runs) -> dict[str, Any]:
    """Means over seeds with their 95 % intervals; gains are paired: the same seed, with the method and alone.

    Args:
        runs: of a method.
        alone: of the student alone, with the same seeds.
    """

    def over_seeds(figure: Callable[[Mapping], float | None], paired: bool) -> Interval | None:
        pairs = [(figure(run), figure(alone[seed]) if paired else 0.0) for seed, run in runs.items()]
        values = [value - reference for value, reference in pairs if None not in (value, reference)]
        return mean_interval(values) if values else None  # None: a class that does not occur, a split without labels

    def on_split(split: str) -> dict[str, Any]:
        classes = {
            name: over_seeds(lambda run, name=name: run[split]["per_class_iou"][name], paired=True)
            for name in first[split]["per_class_iou"]
        }
        lost = [name for name, gain in classes.items() if gain and gain.mean < -NEGATIVE_TRANSFER]
        return {
            "mean": over_seeds(lambda run: run[split]["miou"], paired=False),
            "gain": over_seeds(lambda run: run[split]["miou"], paired=True),
            "class_gains": classes,
            "negative_transfer": [name for name in lost if not classes[name].holds_zero],
        }

    first = next(iter(runs.values()))
    return {
        "best": over_seeds(lambda run: run["best"]["miou"], paired=False),
        **{split: on_split(split) for split in ("val", "test") if first[split]},
        "step_seconds": fmean(run["step_seconds"] for run in runs.values()),
        "peak_memory_mib": max(run["peak_memory_mib"] for run in runs.values()),
    }


def points(interval: Interval | None, signed: bool = False) -> str:
    """An interval of fractions in percentage points: ``54.90 ± 1.20``, ``+1.00 ± -`` from one seed."""
    if interval is None:
        return "-"
    half = "-" if interval.half is None else f"{100 * interval.half:.2f}"
    return f"{100 * interval.mean:{'+' if signed else ''}.2f} ± {half}"


def gain(interval: Interval) -> str:
    return points(interval, signed=True) + (" n.s." if interval.holds_zero else "")


def by_miou(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names, the best mean validation mIoU first."""
    return sorted(methods, key=lambda name: -methods[name]["summary"]["val"]["mean"].mean)


def report_text(result: Mapping[str, Any]) -> str:
    """The comparison as Markdown: figures, gains by class, negative transfer, and the conditions."""
    methods, splits = result["methods"], [split for split in ("val", "test") if result["split"][split]]
    alone, names = next(iter(methods)), by_miou(methods)
    header = ["method", "teacher", "iterations"]
    for split in splits:
        header += [f"{split} mIoU", f"{split} gain"]
    rows = []
    for name in names:
        facts, teacher = methods[name]["summary"], methods[name]["teacher"]
        iterations = next(iter(methods[name]["runs"].values()))["iterations"]
        row = [name, f"{100 * teacher['miou']:.2f}" if teacher else "", str(iterations)]
        for split in splits:
            row += [points(facts[split]["mean"]), "" if name == alone else gain(facts[split]["gain"])]
        step, memory = f"{1000 * facts['step_seconds']:.1f}", f"{facts['peak_memory_mib']:.0f}"
        rows.append([*row, points(facts["best"]), step, memory])
    text = markdown_table([*header, "best val mIoU", "ms a step", "peak MiB"], rows)

    compared = [name for name in names if name != alone]
    for split in splits if compared else []:
        gains = {name: methods[name]["summary"][split] for name in compared}
        rows = [
            [label, *(points(gains[name]["class_gains"][label], signed=True)
                      + (" **!**" if label in gains[name]["negative_transfer"] else "") for name in compared)]
            for label in gains[compared[0]]["class_gains"]
        ]  # fmt: skip
        text += (
            f"\nGain in {split} IoU over the {alone} (**!**: negative transfer, a mean loss of more than "
            f"{100 * NEGATIVE_TRANSFER:g} point, whose interval, where there is one, does not hold 0):\n\n"
        )
        text += markdown_table(["class", *compared], rows)
    return text + "\n" + "".join(f"- {note}\n" for note in notes(result))


def notes(result: Mapping[str, Any]) -> list[str]:
    """The meaning of the figures, their conditions, and their limits."""
    budget, seeds = result["budget"], result["seeds"]
    kind = f"{budget['iterations']} iterations" if budget["iterations"] else (
        f"{budget['seconds']:g} s of training at the time of a step in a probe"
    )  # fmt: skip
    protocol = ", ".join(f"{name} {value}" for name, value in result["eval"].items() if value is not None)
    lines = [
        f"mIoU and IoU in %: mean ± half of the 95 % interval (Student's t) over seed(s) {', '.join(map(str, seeds))}"
        + ("; one seed gives no interval (-), so nothing is known of significance" if len(seeds) == 1 else ""),
        "mIoU: of the student at the end of its budget; gain: paired by seed with the student alone; n.s.: not "
        "significant, the interval holds 0; not corrected for the number of methods",
        "best: the best validation of a run; it is chosen on the set on which it is measured, so it is optimistic",
        f"budget: {kind}, for every method; lists: {', '.join(filter(None, result['split'].values()))}; "
        f"protocol {result['protocol'] or 'none'}; crop {'x'.join(map(str, result['crop_size']))}; "
        f"eval {protocol}; {result['precision']} on {result['device']}",
        f"ms a step: median of a run, validation left out, mean over seeds, {result['jobs']} run(s) at a time",
    ]
    runs = [run["environment"] for method in result["methods"].values() for run in method["runs"].values()]
    differ = [name for name in runs[0] if len({run.get(name) for run in runs}) > 1]
    if differ:
        lines.append(f"the runs were not made in one environment: they differ in {', '.join(differ)}")
    return lines


def write_pictures(result: Mapping[str, Any], out: Path) -> None:
    """``miou.png``, ``curves_iterations.png`` and ``curves_seconds.png``; one style a method in all of them."""
    methods = result["methods"]
    styles = dict(zip(methods, zip(cycle(CURVE_COLORS), cycle(MARKERS), cycle(LINES)), strict=False))  # noqa: B905
    plot_miou(result, styles, out / "miou.png")
    for file, label, scale in (
        ("curves_iterations.png", "iteration", lambda facts: 1),
        ("curves_seconds.png", "training time (s): iterations x median step", lambda facts: facts["step_seconds"]),
    ):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel=label, ylabel="validation mIoU (%)")
        for name in by_miou(methods):
            (color, marker, line), runs = styles[name], list(methods[name]["runs"].values())
            unit = scale(methods[name]["summary"])
            x = [unit * step for step, _ in runs[0]["curve"]]
            curves = [[100 * miou for _, miou in run["curve"]] for run in runs]
            for curve in curves if len(curves) > 1 else []:
                axes.plot(x, curve, line, color=color, linewidth=0.7, alpha=0.4)
            means = [fmean(values) for values in zip(*curves, strict=True)]
            axes.plot(x, means, line, color=color, marker=marker, markersize=5, linewidth=2, label=name)
        dress_curves(axes, "Validation mIoU during training: mean and seeds")
        save_figure(figure, out / file)


def plot_miou(result: Mapping[str, Any], styles: Mapping[str, Sequence[str]], path: Path) -> None:
    """A row for each method, the best on top: its seeds, their mean and 95 % interval; a column for each split."""
    methods, splits = result["methods"], [split for split in ("val", "test") if result["split"][split]]
    alone, names = next(iter(methods)), by_miou(methods)
    figure = Figure(figsize=(3 + 5 * len(splits), 1.5 + 0.5 * len(names)), layout="constrained")
    for axes, split in zip(figure.subplots(1, len(splits), sharey=True, squeeze=False)[0], splits, strict=True):
        for y, name in enumerate(names):
            color, marker, _ = styles[name]
            interval = methods[name]["summary"][split]["mean"]
            seeds = [100 * run[split]["miou"] for run in methods[name]["runs"].values()]
            if interval.half is not None:
                axes.errorbar(100 * interval.mean, y, xerr=100 * interval.half, color=color, capsize=5, linewidth=2)
            axes.plot(100 * interval.mean, y, marker, color=color, markersize=9)
            axes.plot(seeds, [y + 0.25] * len(seeds), "|", color=color, markersize=8, markeredgewidth=2)
        axes.axvline(100 * methods[alone]["summary"][split]["mean"].mean, color="0.5", linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(f"{split} mIoU (%)")
        axes.grid(axis="x", alpha=0.3)
    title = "Mean with 95 % interval; ticks: seeds" if len(result["seeds"]) > 1 else "One seed: no interval"
    figure.suptitle(f"{title}; dotted: {alone}", fontsize="medium", fontweight="bold")
    save_figure(figure, path)
