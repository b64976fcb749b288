"""Evaluates a network on a validation or test set: per-class IoU, mIoU, mAcc, pixel accuracy.

python eval.py configs/demo/hmkd.py work_dirs/hmkd/student.safetensors
python eval.py work_dirs/hmkd/student.safetensors                        the config is read from the file
python eval.py CONFIG work_dirs/RUN/best.pt --scales 0.5,1.0,1.5 --flip
python eval.py CONFIG CHECKPOINT --mode slide --cfg-options "eval.crop_size=(512,512)" "eval.stride=(341,341)"
python eval.py CONFIG --teacher --json teacher.json                      the config's teacher
python eval.py CONFIG CHECKPOINT --boundary --per-image images.csv       boundary IoU; a table with one row per image
python eval.py CONFIG CHECKPOINT --split test --save-pred predictions --save-vis pictures
torchrun --nproc_per_node=4 eval.py CONFIG CHECKPOINT                    the same figures, four times as fast
"""

import argparse
import csv
import io
import json
import math
from dataclasses import replace

from configs.schema import Eval, Experiment, autocast_dtype
from engine.boundary import BoundaryIoU
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.evaluation import evaluate
from engine.launch import launch
from engine.metrics import ConfusionMatrix
from engine.teacher import build_teacher, in_own_resolution
from models import read_weights
from models.placement import place
from utils.config import ConfigError, load_config, validate
from utils.console import environment, say
from utils.distributed import World, barrier, gather_objects
from utils.files import check_writable, remove_temporaries, user_path, write_atomically
from utils.visualize import overlay, write_png


def factors(text: str) -> list[float]:
    """``'0.5,1.0'`` -> [0.5, 1.0]"""
    return [float(part) for part in text.split(",")]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="Python config file, or only a CHECKPOINT, which holds its config")
    parser.add_argument("checkpoint", nargs="?", help="last.pt, best.pt, step_*.pt or student.safetensors")
    parser.add_argument("--teacher", action="store_true", help="evaluate the config's teacher instead of a checkpoint")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--mode", choices=("whole", "slide"), help="default: the config's eval.mode")
    parser.add_argument("--scales", type=factors, metavar="0.5,1.0", help="average over these factors on the size")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--boundary", action="store_true", help="also measure boundary IoU (Cheng et al. 2021)")
    parser.add_argument("--per-image", type=user_path, metavar="FILE", help="write a CSV table, one row per image")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write all metrics, with config and environment")
    parser.add_argument("--save-pred", type=user_path, metavar="DIR", help="write predictions as PNGs of raw ids")
    parser.add_argument("--save-vis", type=user_path, metavar="DIR", help="write overlays in the dataset's colours")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override config values")
    args = parser.parse_args(arguments)
    if args.checkpoint is None and not args.teacher and not args.config.endswith(".py"):
        args.checkpoint = args.config
    if args.teacher == (args.checkpoint is not None):
        parser.error("give either a CHECKPOINT or --teacher")
    return args


def read_config(path: str, schema: type[Experiment], options: list[str]) -> Experiment:
    """As ``load_config``, also of a checkpoint; ConfigError if it holds no config."""
    if path.endswith(".py"):
        return load_config(path, schema, options)
    values = read_weights(path).metadata.get("config")
    if values is None:
        raise ConfigError(f"{path} holds no config: give the config file before it")
    return load_config(path, schema, options, values)


def describe(settings: Eval) -> str:
    """How the images are seen: mode, scales, flip."""
    windows = "" if settings.mode == "whole" else f" (windows {settings.crop_size}, stride {settings.stride})"
    scales = ", ".join(f"{scale:g}" for scale in settings.scales)
    return f"mode {settings.mode}{windows}, scales {scales}, {'flip' if settings.flip else 'no flip'}"


def run_evaluation(config: Experiment, args: argparse.Namespace, world: World) -> int:
    dataset, precision = build_split(config, args.config, args.split), config.eval_precision
    if (args.boundary or args.per_image) and not any(label for _, label in dataset.files):
        raise ConfigError(
            f"{args.config}: data.{args.split}_list names no labels, which --boundary and --per-image need; "
            "leave them out, or choose a split with labels (--split)"
        )
    if args.teacher:
        model = build_teacher(config, args.config, dataset.class_names)
        if model is None:
            raise ConfigError(f"{args.config}: teacher is None: there is no teacher to evaluate")
        report = model.loaded
        model.prepare(
            world,
            autocast_dtype=autocast_dtype(precision),
            channels_last=config.train.channels_last,
            shard=config.teacher.shard,
        )
    else:
        model, _ = build_student(config, args.config, dataset.class_names, pretrained=False)
        report = load_trained(model, read_weights(args.checkpoint), dataset.class_names)
        place(model, world.device, config.train.channels_last)
    if world.is_main:
        say(str(report))

    asked = {"mode": args.mode, "scales": args.scales, "flip": args.flip}
    changes = {name: value for name, value in asked.items() if value is not None}
    settings = validate({**config.eval.model_dump(), **changes}, Eval, f"{args.config}: eval")

    if world.is_main:
        for file in filter(None, (args.json, args.per_image)):
            check_writable(file)
        for folder in filter(None, (args.save_pred, args.save_vis)):
            remove_temporaries(folder)  # of an evaluation that was killed
    barrier()

    boundary, rows = BoundaryIoU(dataset.num_classes), {}

    def on_sample(name, image, prediction, label):
        if args.boundary:
            boundary.update(prediction, label)
        if args.per_image:
            confusion = ConfusionMatrix(dataset.num_classes)
            confusion.update(prediction, label)
            rows[name] = {"name": name, **confusion.compute().row(dataset.class_names)}
        if args.save_pred:
            write_png(args.save_pred / f"{name}.png", dataset.to_raw_ids(prediction.numpy()))
        if args.save_vis:
            picture = overlay(image.permute(1, 2, 0).numpy(), prediction.numpy(), dataset.palette)
            write_png(args.save_vis / f"{name}.png", picture)

    network, protocol = in_own_resolution(model, settings.protocol)
    metrics = evaluate(
        network, dataset, device=world.device, autocast_dtype=autocast_dtype(precision),
        workers=config.data.workers, timeout=config.train.timeout, description=args.split,
        on_sample=on_sample if args.boundary or args.per_image or args.save_pred or args.save_vis else None,
        **protocol,
    )  # fmt: skip
    if args.boundary:
        metrics = replace(metrics, **boundary.compute())
    rows = {name: row for of_rank in gather_objects(rows) for name, row in of_rank.items()}
    if not world.is_main:
        return 0
    say(metrics.table(dataset.class_names))
    counted = sum(not math.isnan(iou) for iou in metrics.per_class_iou)
    say(
        f"{args.split} split, {len(dataset)} images, mean IoU over {counted} of {dataset.num_classes} classes; "
        f"{precision}, {describe(settings)}"
    )
    if args.json:
        result = {
            **metrics.to_dict(), "class_names": list(dataset.class_names), "images": len(dataset), "split": args.split,
            "eval": settings.protocol, "precision": precision, "protocol": config.protocol,
            "checkpoint": report.source, "sha256": report.digest(),
            "world_size": world.size, "environment": environment(), "config": config.model_dump(mode="json"),
        }  # fmt: skip
        write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())
    if args.per_image:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, rows[dataset.names[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(rows.get, dataset.names))
        write_atomically(args.per_image, table.getvalue().encode())
    return 0


def main(arguments: list[str] | None = None) -> None:
    launch(run_evaluation, parse_arguments(arguments), read_config=read_config)


if __name__ == "__main__":
    main()
