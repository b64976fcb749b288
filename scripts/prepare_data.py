"""Makes any folder of images and masks ready for training: list files, three configs, an image of samples, and tables.

Finds the mask of each image, divides the images into train and val, decodes every file completely, and writes
FOLDER/NAME_train.txt, FOLDER/NAME_val.txt and configs/NAME/{student,teacher,hmkd}.py and samples.png. It prints each
choice and the flag or key that changes it. Nothing is overwritten. With --to-masks it only converts polygons in COCO
JSON, labelme JSON or YOLO files to masks. With a known dataset's name before FOLDER it does what prepare_lists.py does.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from datasets import build_dataset
from datasets.base import SegDataset
from scripts import prepare_lists
from scripts._command import command_parser
from scripts.preparation.labels import Sample, decide_classes, read_colors, read_samples
from scripts.preparation.layouts import list_line
from scripts.preparation.masks import COLORS, FOLDER, write_masks
from scripts.preparation.pairs import Pair, find_pairs
from scripts.preparation.problems import DataError, report_problems
from scripts.preparation.recipe import choose_recipe, write_configs
from scripts.preparation.splits import divide
from utils.names import name_some
from utils.visualize import overlay, panel, write_png

EXAMPLES = """\
examples:
  python scripts/prepare_data.py data/mine    # masks in data/mine/masks, or another layout of docs/your_data.md
  python scripts/prepare_data.py data/mine --images 'img/**/*.jpg' --labels 'mask/{folder}/{stem}_lbl.png'
      {stem}: an image's name without suffix; {folder}: its folder below img
  python scripts/prepare_data.py data/mine --colors label_colors.txt --ignore Void
  python scripts/prepare_data.py data/mine --to-masks
  python scripts/prepare_data.py cityscapes data/cityscapes
"""
SHOWN, COLUMNS = 12, 3  # samples in the picture


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("known", nargs="?", metavar="DATASET", help="a known dataset, as prepare_lists.py names it")
    add("folder", type=Path, metavar="FOLDER")
    add("--images", metavar="PATTERN", help="images in FOLDER (default: the usual layouts)")
    add("--labels", metavar="PATTERN", help="mask of an image, with {stem} and optionally {folder}/")
    add("--unlabelled", nargs="+", default=[], metavar="PATTERN", help="images that need no mask")
    add("--val", type=float, default=0.2, metavar="SHARE", help="share of the images for val (default 0.2)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the random split (default 0)")
    add("--name", help="name of the dataset (default: the folder's name)")
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--classes", nargs="+", metavar="NAME", help="class names, in the order of the ids in the masks")
    named.add_argument("--colors", type=Path, metavar="FILE", help="lines 'R G B name' or 'name: R, G, B'")
    add("--ignore", nargs="+", default=[], metavar="VALUE", help="void: ids, colours R,G,B, or names in FILE")
    add("--image-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="values of black and white, 16-bit images")
    add("--to-masks", action="store_true", help="only convert polygons to FOLDER/masks")
    args = parser.parse_args(arguments)
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    if args.known and flags:
        parser.error(f"{args.known} FOLDER takes no flags")
    if args.to_masks and flags - {"--to-masks", "--classes"}:
        parser.error("--to-masks takes FOLDER and --classes alone; the other flags are for the call after it")
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if not 0 < args.val < 1:
        parser.error(f"--val {args.val}: expected a share between 0 and 1")
    args.name = args.name or re.sub(r"[^\w.-]+", "_", args.folder.resolve().name)
    if not re.fullmatch(r"[\w.-]+", args.name):
        parser.error(f"--name {args.name}: expected letters, digits, '_', '-' and '.'")
    args.configs = Path("configs") / args.name
    return args


def make_masks(args: argparse.Namespace) -> None:
    """Writes the masks of polygons, and prints the next command."""
    kind, count, classes = write_masks(args.folder, args.classes)
    print(f"{args.folder}: {count} masks of {kind} in {args.folder / FOLDER}")
    print(f"classes: {', '.join(f'{index} = {name}' for index, name in enumerate(classes))} (--classes)")
    print("where objects overlap, the smaller is on top; pixels of no object are background")
    print(f"next:\n  python scripts/prepare_data.py {args.folder} --colors {args.folder / FOLDER / COLORS}")


def prepare(args: argparse.Namespace) -> None:
    """Finds, reads and writes all. Raises DataError if something is wrong with the folder; then nothing is written."""
    outputs = [list_path(args, split) for split in ("train", "val", "test", "unlabelled")] + [args.configs]
    if existing := [str(path) for path in outputs if path.exists()]:
        raise DataError([f"{', '.join(existing)} exists, and nothing is overwritten; --name gives another name"])
    colors = None if args.colors is None else read_colors(args.colors)
    found = find_pairs(args.folder, args.images, args.labels, args.unlabelled)
    splits, how = divide(args.folder, found.pairs, args.val, args.seed)
    if found.unlabelled:
        splits["unlabelled"] = [Pair(image, None) for image in found.unlabelled]
    samples = read_samples(args.folder, [pair for pairs in splits.values() for pair in pairs])
    if leaked := find_copies(splits["val"], splits.get("unlabelled", []), samples):
        raise DataError(
            [f"{len(leaked)} unlabelled images are also in val: {name_some(leaked)}; the student would be measured on "
             "images that taught it: move them away"]
        )  # fmt: skip
    options, assumptions = decide_classes(samples, args.classes, colors, args.ignore)
    if args.image_range is not None:
        options["image_range"] = tuple(args.image_range)
    recipe, choices = choose_recipe([samples[pair].size for pair in splits["train"]])
    print(f"{args.folder}: {', '.join(f'{len(pairs)} {split}' for split, pairs in splits.items())}")
    image, label = splits["train"][0]
    print(f"pairs: {image} with {label} and so on; --images and --labels change it")
    if found.unused:
        print(f"not used: {len(found.unused)} other pictures: {name_some(found.unused)}")
    print("\n".join([how, *(f"classes: {text}" for text in assumptions), *(f"recipe: {text}" for text in choices)]))
    try:
        write_all(args, splits, recipe, options)
    except BaseException:
        for path in outputs[:-1]:
            path.unlink(missing_ok=True)
        shutil.rmtree(args.configs, ignore_errors=True)
        raise
    if copies := find_copies(splits["val"], splits["train"], samples):
        twice = f"{len(copies)} images of train are also in val: {name_some(copies)}"
        print(f"warning: {twice}; move one of each away", file=sys.stderr)
    print(f"wrote {', '.join(str(path) for path in outputs if path.exists())}")
    if found.unlabelled:
        print("hmkd.py learns from the images without labels too: data.unlabelled, train.unlabelled_batch")
    print(f"look at {args.configs}/samples.png: are the classes right?\nnext:")
    for run in ("student", "teacher", "hmkd"):
        print(f"  python train_kd.py {args.configs}/{run}.py --work-dir work_dirs/{args.name}/{run}")


def list_path(args: argparse.Namespace, split: str) -> Path:
    return args.folder / f"{args.name}_{split}.txt"


def find_copies(val: Sequence[Pair], others: Sequence[Pair], samples: Mapping[Pair, Sample]) -> list[str]:
    """The images of the others that are also in val, by content."""
    known = {samples[pair].digest: pair.image for pair in val}
    digests = [(pair.image, samples[pair].digest) for pair in others]
    return [f"{image} = {known[digest]}" for image, digest in digests if digest in known]


def write_all(
    args: argparse.Namespace, splits: Mapping[str, Sequence[Pair]], recipe: Mapping[str, Any], options: dict[str, Any]
) -> None:
    """Writes lists, configs and picture, and checks them as training reads them, with tables of what they hold."""
    for split, pairs in splits.items():
        list_path(args, split).write_text("".join(f"{list_line(*pair)}\n" for pair in pairs), encoding="utf-8")
    names = {f"{split}_list": list_path(args, split).name for split in splits if split != "unlabelled"}
    args.configs.mkdir(parents=True)
    data = {"type": "list", "root": args.folder.as_posix(), **names, **options}
    unlabelled = list_path(args, "unlabelled").name if "unlabelled" in splits else None
    write_configs(recipe, data, args.name, args.configs, unlabelled)
    if problems := prepare_lists.check_config(str(args.configs / "hmkd.py"), []):
        flag = "give --image-range, which sets data.image_range="
        raise DataError([problem.replace("set data.image_range=", flag) for problem in problems])
    dataset = build_dataset("list", args.folder, list_path(args, "train").name, **options)
    write_png(args.configs / "samples.png", draw_samples(dataset, args.seed))


def draw_samples(dataset: SegDataset, seed: int) -> np.ndarray:
    """Twelve samples (or as many as there are) with their classes in colour and a legend -> H W 3 uint8."""
    order = np.random.default_rng(seed).permutation(len(dataset))[:SHOWN].tolist()
    columns = min(COLUMNS, len(order))
    cells = []
    for index in sorted(order[: len(order) // columns * columns]):
        image, label = dataset.load(index)
        cells.append((dataset.names[index][-24:], overlay(image, label, dataset.palette)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return panel(rows, dict(zip(dataset.class_names, map(tuple, dataset.palette.tolist()), strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if there is no problem, 1 if there are problems and nothing was written."""
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if args.known is not None:
        return prepare_lists.main([args.known, str(args.folder)])
    try:
        make_masks(args) if args.to_masks else prepare(args)
    except (OSError, ValueError) as error:
        problems = error.problems if isinstance(error, DataError) else [str(error)]
        return report_problems(problems, "; nothing was written")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
