"""Makes a folder for the Hugging Face Hub from a finished run; --push uploads it.

It holds student.safetensors, student.onnx and student.pt2 (PyTorch without this repository), config.py, metrics.jsonl,
an image, and README.md: the model card with metrics, teacher, training cost, limits and code.
load_student("hf:NAME") or load_student("FOLDER") loads it.
"""

import argparse
import html
import shutil
import tempfile
from pathlib import Path

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token

from configs.schema import Experiment
from engine.data import build_split
from engine.report import prediction_panel
from models import load_student
from models.weights.hugging_face import STUDENT
from models.weights.tensors import first_line
from scripts import export
from scripts._command import add_config_options, command_parser, one_line_errors
from scripts._runs import read_metrics, read_run
from utils.config import load_config
from utils.files import user_path
from utils.visualize import write_png

EXAMPLES = """\
examples:
  python scripts/publish.py work_dirs/quickstart/hmkd --out card --license cc-by-4.0
  python scripts/publish.py RUN --out card --push USER/NAME    needs a token: hf auth login, or HF_TOKEN
"""
TEMPLATE = Path(__file__).with_name("model_card.md")
METRICS = {"miou": ("mean_iou", "mIoU"), "macc": ("mean_accuracy", "mean accuracy"),
           "pixel_accuracy": ("pixel_accuracy", "pixel accuracy")}  # fmt: skip


def plain(text: object) -> str:
    """Text that neither HTML nor a table of Markdown reads as its own."""
    return html.escape(str(text)).replace("|", "&#124;").replace("`", "&#96;")


def write_card(args: argparse.Namespace, config: Experiment, about: dict, sizes: dict[str, str], folder: Path) -> None:
    """Writes the model card, and checks it with huggingface_hub's reader.

    Raises:
        ValueError: the student has no mIoU of a validation.
    """
    run, name = read_run(args.run.name, args.run), args.push or args.out.name
    dataset = Path(config.data.root).resolve().name
    rows = [row for row in read_metrics(args.run) if row["step"] == about["step"] and row.get("miou") == about["miou"]]
    measured = rows[0] if rows else {"miou": about["miou"]}
    data = ModelCardData(
        license=args.license, pipeline_tag="image-segmentation", library_name="pytorch", model_name=name,
        tags=["semantic-segmentation", "knowledge-distillation", "pytorch"],
        eval_results=[
            EvalResult(
                task_type="image-segmentation", dataset_type=config.data.type, dataset_name=dataset,
                dataset_split="val", metric_type=kind, metric_name=title, metric_value=measured[key],
                metric_args=config.eval.model_dump(mode="json"),
            )
            for key, (kind, title) in METRICS.items()
            if key in measured
        ],
    )  # fmt: skip
    card = ModelCard.from_template(
        data, template_str=TEMPLATE.read_text(), config=config, about=about, run=run, sizes=sizes, plain=plain,
        name=name, dataset=dataset, source=f"hf:{name}" if args.push else ".", license=args.license, measured=measured,
        metrics={title: measured[key] for key, (_, title) in METRICS.items() if key in measured},
    )  # fmt: skip
    card.save(folder / "README.md")
    ModelCard.load(folder / "README.md")


def publish(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise ValueError(f"--out {args.out} exists; give a new folder")
    token = get_token()
    if args.push and not token:
        raise ValueError(f"--push {args.push} needs a token of huggingface.co: run `hf auth login`, or set HF_TOKEN")
    source, weights = str(args.run / "config.py"), args.run / STUDENT
    if not weights.is_file():
        raise ValueError(f"{args.run} holds no {STUDENT}: the run is not finished")
    model, about = load_student(weights)
    if about.get("miou") is None:
        raise ValueError(f"{weights} has no mIoU: the run was never validated, and a card without metrics says nothing")
    config = load_config(source, Experiment, args.cfg_options)
    dataset, sizes = build_split(config, source, "val"), {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as temporary:
        folder = Path(temporary) / args.out.name
        folder.mkdir()
        for file in (weights, args.run / "config.py", args.run / "metrics.jsonl"):
            shutil.copy(file, folder)
        for form in ("onnx", "torch"):
            command = [source, str(weights), "--to", form, "--out", str(folder / f"student{export.SUFFIXES[form]}")]
            options = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
            try:
                export.run(export.parse_arguments([*command, "--dynamic", *options]))
                sizes[form] = "any batch, height and width"
            except ValueError as error:
                print(f"{first_line(error)}\n{form}: exported for one size instead")
                export.run(export.parse_arguments([*command, *options]))
                sizes[form] = "one image of {} x {} pixels".format(*dataset[0]["image"].shape[-2:])
        picture = prediction_panel(dataset, [len(dataset) // 2], {"student": model}, {"student": config.eval.protocol})
        write_png(folder / "panel.png", picture)
        write_card(args, config, about, sizes, folder)
        folder.rename(args.out)
    print(f"wrote {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    if args.push:
        try:
            hub = HfApi(token=token)
            hub.create_repo(args.push, exist_ok=True)
            print(hub.upload_folder(repo_id=args.push, folder_path=args.out))
        except Exception as error:  # the hub's client, and the network below it, raise many types
            raise ValueError(f"--push {args.push}: {first_line(error)}; {args.out} is complete") from error


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("run", type=user_path, metavar="RUN", help="work dir of a finished run")
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--push", metavar="NAME", help="upload it as USER/NAME or ORGANISATION/NAME")
    parser.add_argument(
        "--license", default="unknown", metavar="ID",
        help="licence of the weights, in the Hub's spelling (default unknown); that of the images may restrict it",
    )  # fmt: skip
    add_config_options(parser, "override config values, such as data.root")
    args = parser.parse_args(arguments)
    with one_line_errors():
        publish(args)


if __name__ == "__main__":
    main()
