"""Makes any folder of images and masks ready for training: list files, three configs, a picture and tables.

Finds the mask of each image, divides the images into train and val, reads every file whole, and writes
FOLDER/NAME_train.txt, FOLDER/NAME_val.txt and configs/NAME/{student,teacher,hmkd}.py and samples.png. It prints each
choice and the flag or key that changes it. Nothing is overwritten. With --to-masks it first makes masks of the polygons
in COCO JSON, labelme JSON or YOLO files. With a known data set's name before FOLDER it does what prepare_lists.py does.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the repository's root is not on the import path
    from _as_module import restart_as_module

    restart_as_module(__file__)

from datasets import build_dataset
from scripts import prepare_lists
from scripts.preparation.colors import read_colors
from scripts.preparation.labels import Classes, Sample, decide_classes, read_samples
from scripts.preparation.masks import COLORS, FOLDER, write_masks
from scripts.preparation.pairs import Found, Pair, find_pairs
from scripts.preparation.problems import DataError, name_some
from scripts.preparation.recipe import BATCH, Recipe, choose_recipe, write_configs
from scripts.preparation.samples import draw_samples
from scripts.preparation.splits import Division, divide
from utils.visualize import write_png

EXAMPLES = """\
examples:
  python scripts/prepare_data.py data/mine
      masks in data/mine/masks, or another usual layout (docs/your_data.md lists them)
  python scripts/prepare_data.py data/mine --images 'img/**/*.jpg' --labels 'mask/{folder}/{stem}_lbl.png'
      {stem}: an image's name without suffix; {folder}: its folder below img
  python scripts/prepare_data.py data/mine --colors label_colors.txt --ignore Void
  python scripts/prepare_data.py data/mine --to-masks
      data/mine/masks from COCO JSON, labelme JSON or YOLO polygons
  python scripts/prepare_data.py cityscapes data/cityscapes
"""
SHOWN = 20  # problems printed


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "prepare_data.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("known", nargs="?", metavar="DATASET", help="a known data set, as prepare_lists.py names it")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--images", metavar="PATTERN", help="images, below FOLDER (default: the usual layouts)")
    parser.add_argument("--labels", metavar="PATTERN", help="mask of an image, with {stem} and perhaps {folder}")
    parser.add_argument(
        "--unlabelled", nargs="+", default=[], metavar="PATTERN",
        help="images that need no mask; those without one go to NAME_unlabelled.txt",
    )  # fmt: skip
    parser.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="of the images, for val (default 0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random split (default 0)")
    parser.add_argument("--name", help="of the data (default: the folder's name)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the configs (default: configs/NAME)")
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--classes", nargs="+", metavar="NAME", help="of the classes, in the order of their values")
    named.add_argument("--colors", type=Path, metavar="FILE", help="lines 'R G B name' or 'name: R, G, B'")
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="ids, colours (R,G,B) or names in the file that are void",
    )
    parser.add_argument(
        "--image-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="black and white of 16-bit images"
    )
    parser.add_argument("--to-masks", action="store_true", help="make FOLDER/masks of polygons, and stop")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    if args.known and len(arguments) > 2:
        parser.error(f"{args.known} FOLDER takes no flags")
    if args.to_masks and set(arguments) & {"--images", "--labels", "--colors", "--ignore", "--name"}:
        parser.error("--to-masks takes FOLDER and --classes alone; the other flags are for the call after it")
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if not 0 < args.val < 1:
        parser.error(f"--val {args.val}: expected a share between 0 and 1")
    args.name = args.name or re.sub(r"[^\w.-]+", "_", args.folder.resolve().name)
    if not re.fullmatch(r"[\w.-]+", args.name):
        parser.error(f"--name {args.name}: expected letters, digits, '_', '-' and '.'")
    args.out = args.out or Path("configs") / args.name
    return args


def prepare(args: argparse.Namespace) -> None:
    """Finds, reads and writes all.

    Raises:
        DataError: something is wrong with the folder; nothing was written.
    """
    refuse_existing(args)
    found = find_pairs(args.folder, args.images, args.labels, args.unlabelled)
    division = divide(args.folder, found.pairs, args.val, args.seed)
    pairs = [pair for part in division.splits.values() for pair in part]
    samples = dict(zip(pairs, read_samples(args.folder, pairs, args.image_range), strict=True))
    free = [Pair(image, None) for image in found.unlabelled]
    notes = compare_contents(
        division, samples, dict(zip(free, read_samples(args.folder, free, args.image_range), strict=True))
    )
    colors = None if args.colors is None else read_colors(args.colors)
    classes = decide_classes(args.folder, pairs, list(samples.values()), args.classes, colors, args.ignore)
    recipe = choose_recipe([samples[pair].size for pair in division.splits["train"]])
    print_choices(args, found, division, classes, recipe)
    write_all(args, found, division, classes, recipe)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def make_masks(args: argparse.Namespace) -> None:
    """Writes the masks of polygons, and prints the next command."""
    written = write_masks(args.folder, args.classes)
    print(f"{args.folder}: {written.count} masks of {written.format} in {args.folder / FOLDER}")
    print(f"classes: {', '.join(f'{index} = {name}' for index, name in enumerate(written.classes))} (--classes)")
    print("where objects overlap, the smaller is on top; pixels of no object are background")
    print(f"next:\n  python scripts/prepare_data.py {args.folder} --colors {args.folder / FOLDER / COLORS}")


def refuse_existing(args: argparse.Namespace) -> None:
    """Raises DataError if a file would be overwritten."""
    outputs = [list_path(args, split) for split in ("train", "val", "test", "unlabelled")] + [args.out]
    if existing := [str(path) for path in outputs if path.exists()]:
        raise DataError([f"{', '.join(existing)} exists, and nothing is overwritten; --name gives another name"])


def list_path(args: argparse.Namespace, split: str) -> Path:
    return args.folder / f"{args.name}_{split}.txt"


def compare_contents(division: Division, samples: dict[Pair, Sample], free: dict[Pair, Sample]) -> list[str]:
    """Compares the images of val with all others by content.

    Returns:
        Which images of train are also in val.

    Raises:
        DataError: unlabelled images are also in val.
    """
    val = {samples[pair].digest: pair.image for pair in division.splits["val"]}
    leaked = [f"{pair.image} = {val[sample.digest]}" for pair, sample in free.items() if sample.digest in val]
    if leaked:
        raise DataError(
            [f"{len(leaked)} unlabelled images are also in val: {name_some(leaked)}; the student would be measured on "
             "images that taught it: move them away"]
        )  # fmt: skip
    train = [(pair.image, samples[pair].digest) for pair in division.splits["train"]]
    twice = [f"{image} = {val[digest]}" for image, digest in train if digest in val]
    if not twice:
        return []
    return [f"{len(twice)} images of train are also in val: {name_some(twice)}; move one of each away"]


def print_choices(args: argparse.Namespace, found: Found, division: Division, classes: Classes, recipe: Recipe) -> None:
    sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in division.splits.items())
    print(f"{args.folder}: {sizes}" + (f", {len(found.unlabelled)} without labels" if found.unlabelled else ""))
    print("pairs: as {} with {} (--images and --labels change it)".format(*division.splits["train"][0]))
    if found.unused:
        print(f"not used: {len(found.unused)} other pictures: {name_some(found.unused)}")
    print(division.how)
    for text in classes.assumptions:
        print(f"classes: {text}")
    for text in recipe.choices:
        print(f"recipe: {text}")


def write_all(args: argparse.Namespace, found: Found, division: Division, classes: Classes, recipe: Recipe) -> None:
    """Writes lists, configs and picture, checks them as training reads them and prints tables; all or nothing."""
    lists = division.splits | (
        {"unlabelled": [Pair(image, None) for image in found.unlabelled]} if found.unlabelled else {}
    )
    data = {"type": "list", "root": args.folder.as_posix()}
    data |= {f"{split}_list": list_path(args, split).name for split in division.splits}
    options = classes.options | ({} if args.image_range is None else {"image_range": tuple(args.image_range)})
    try:
        for split, pairs in lists.items():
            list_path(args, split).write_text("".join(f"{line(pair)}\n" for pair in pairs), encoding="utf-8")
        args.out.mkdir(parents=True)
        write_configs(recipe, {**data, **options}, args.name, args.out)
        dataset = build_dataset("list", args.folder, list_path(args, "train").name, **options)
        write_png(args.out / "samples.png", draw_samples(dataset, args.seed))
        if problems := prepare_lists.check_config(str(args.out / "student.py"), []):
            raise DataError(problems)
    except BaseException:
        for split in lists:
            list_path(args, split).unlink(missing_ok=True)
        shutil.rmtree(args.out, ignore_errors=True)
        raise
    print(
        f"wrote {', '.join(str(list_path(args, split)) for split in lists)}, {args.out}/student.py, teacher.py, hmkd.py"
    )
    if found.unlabelled:
        key = f"data.unlabelled={list_path(args, 'unlabelled').name}"
        print(
            f"to learn from the images without labels: --cfg-options {key} train.unlabelled_batch={BATCH} with hmkd.py"
        )
    print(f"look at {args.out}/samples.png: are the classes right?\nnext:")
    for run in ("student", "teacher", "hmkd"):
        print(f"  python train_kd.py {args.out}/{run}.py --work-dir work_dirs/{args.name}/{run}")


def line(pair: Pair) -> str:
    """A line of a list file."""
    names = [pair.image] if pair.label is None else [pair.image, pair.label]
    if " " in pair.image and pair.label is None:
        raise DataError([f"{pair.image!r} has a space and no mask, which a list cannot hold; rename it"])
    return ("\t" if " " in "".join(names) else " ").join(names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if there is no problem, 1 if there are problems and nothing was written."""
    args = parse_arguments(arguments)
    if args.known is not None:
        return prepare_lists.main([args.known, str(args.folder)])
    try:
        make_masks(args) if args.to_masks else prepare(args)
    except (OSError, ValueError) as error:
        problems = error.problems if isinstance(error, DataError) else [str(error)]
        for problem in problems[:SHOWN]:
            print(f"error: {problem}", file=sys.stderr)
        more = f" ({len(problems) - SHOWN} more than shown)" if len(problems) > SHOWN else ""
        print(f"problems: {len(problems)}{more}; nothing was written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
