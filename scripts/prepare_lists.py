"""Writes the train, val and test lists of a published dataset, after decoding every image and label completely.

With --config it checks the lists of a config, for any dataset. For the labels of train and val, tables show the
values in the files, the pixels of each class, and class weights for train.class_weights.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from configs.schema import Experiment
from datasets import DATASETS
from datasets.base import SegDataset
from datasets.census import Value, add_up, check_census, class_weights, count_values
from datasets.pixels import read_ids
from engine.data import build_split, check_leaks
from engine.report import census_table, value_table
from scripts._command import add_config_options, command_parser
from scripts.preparation.layouts import COUNTS, LAYOUTS, find_lists, relocate_list
from scripts.preparation.problems import report_problems
from utils.config import load_config
from utils.names import VOID, name_some

EXAMPLES = f"""\
examples:
  python scripts/prepare_lists.py cityscapes data/cityscapes
  python scripts/prepare_lists.py camvid data/camvid --check
      checks the existing lists, and writes nothing
  python scripts/prepare_lists.py --config configs/hmkd/camvid_b4_r18.py
      checks the lists of a config, and writes nothing

{LAYOUTS}"""
SIZES_SHOWN = 4  # different sizes of images printed
VALUES_SHOWN = 60  # different values in label files printed


class Sample(NamedTuple):
    """What one sample holds. Counts are pixels; without a label there are none."""

    image: Path
    label: Path | None
    size: tuple[int, int]  # H, W
    rotated: bool  # by EXIF
    counts: np.ndarray | None  # 256, of each train id
    values: Mapping[tuple[Value, int], int]  # of each (value in the label file, train id)


class Split(NamedTuple):
    """The samples of one split that could be read, and the problems of the others; no dataset if its list is bad."""

    dataset: SegDataset | None
    samples: list[Sample]
    problems: list[str]


def check_lists(name: str, root: Path, folder: Path) -> list[str]:
    """Reads the lists in ``folder`` as training does and prints what they hold. Returns the problems."""
    splits = {}
    for split, expected in COUNTS[name].items():
        path = folder / f"{split}.txt"
        if path.is_file():
            build = partial(DATASETS[name], root, path.resolve())
            splits[split] = check_split(split, build, expected)
        else:
            print(_describe(split, [], expected))
    if not splits:
        return [f"{folder} has none of {', '.join(f'{split}.txt' for split in COUNTS[name])}"]
    return check_labels(splits, default_table=False)


def check_config(source: str, options: Sequence[str]) -> list[str]:
    """Reads the lists of a config as training and evaluation do, and prints what they hold. Returns the problems."""
    config = load_config(source, Experiment, [*options, "data.packed=None"])
    splits = {}
    data = config.data
    lists = {"train": data.train_list, "val": data.val_list, "test": data.test_list, "unlabelled": data.unlabelled}
    for split, list_file in lists.items():
        if list_file is None:
            continue
        if split == "test" and not (path := Path(data.root) / list_file).is_file():
            print(f"{_describe(split, [])}: data.test_list {path} is missing; only eval.py --split test needs it")
            continue
        build = partial(build_split, config, source, split, check_files=False)
        splits[split] = check_split(split, build, labelled=split in ("train", "val"))
    problems = check_labels(splits, data.ids_by_default)
    sets = [splits[split].dataset for split in ("unlabelled", "val") if split in splits]
    if len(sets) == 2 and None not in sets:
        try:
            check_leaks(source, [image for image, _ in sets[0].files], sets[1])
        except ValueError as error:
            problems.append(str(error))
    return problems


def check_split(
    split: str, build: Callable[[], SegDataset], expected: int | None = None, labelled: bool = False
) -> Split:
    """Reads all samples of a split; prints their number (``expected`` if it is complete), their sizes, and warnings."""
    try:
        dataset = build()
    except (OSError, ValueError) as error:
        return Split(None, [], [str(error)])
    problems = [f"{image}: has no label in its list" for image, label in dataset.files if labelled and label is None]
    missing = set(dataset.missing_files())
    problems += [f"{path}: is missing, or is a broken link" for path in sorted(missing)]
    there = [index for index, pair in enumerate(dataset.files) if missing.isdisjoint(pair)]
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda index: check_sample(dataset, index), there)
        found = list(tqdm(results, split, len(there), leave=False, disable=None))  # no bar in a log file
    problems += [problem for problem in found if isinstance(problem, str)]
    samples = [sample for sample in found if isinstance(sample, Sample)]
    print(_describe(split, [sample.size for sample in samples], expected, len(dataset)))
    void = [sample.label for sample in samples if sample.counts is not None and not sample.counts[:VOID].any()]
    rotated = [sample.image for sample in samples if sample.rotated]
    for files, what in (
        (void, "labels are void everywhere and teach nothing"),
        (rotated, "images have an EXIF rotation, which is not applied: their labels must fit the pixels as stored"),
    ):
        if files:
            print(f"warning: {split}: {len(files)} {what}; the first is {files[0]}", file=sys.stderr)
    return Split(dataset, samples, problems)


def check_sample(dataset: SegDataset, index: int) -> Sample | str:
    """Reads one sample completely. Returns what it holds, or why it cannot be used."""
    image, label = dataset.files[index]
    try:
        pixels, truth = dataset.load(index)
        with Image.open(image) as picture:
            rotated = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        # A dataset that reads labels in its own way may have files that are no pictures.
        standard = label is not None and type(dataset).read_label is SegDataset.read_label
        values = count_values(read_ids(label), truth) if standard else {}
    except (OSError, ValueError) as error:
        return str(error)
    counts = None if label is None else np.bincount(truth.ravel(), minlength=256)
    return Sample(image, label, pixels.shape[:2], rotated, counts, values)


def check_labels(splits: Mapping[str, Split], default_table: bool) -> list[str]:
    """Prints what the labels of train and val hold, class weights, and what is odd about them. Returns the problems."""
    problems = [problem for split in splits.values() for problem in split.problems]
    shown = {name: split for name, split in splits.items() if name not in ("test", "unlabelled") and split.samples}
    if not shown:
        return problems
    dataset = next(iter(shown.values())).dataset
    names = dataset.class_names
    census, values = {}, {}
    for name, split in shown.items():
        counts = [sample.counts for sample in split.samples if sample.counts is not None]
        census[name] = add_up(counts, dataset.num_classes)
        values[name] = sum((Counter(sample.values) for sample in split.samples), Counter())
    if any(values.values()):
        print(f"\n{value_table(values, names, VALUES_SHOWN)}")
    print(f"\n{census_table(census, names)}")
    if problems or not {"train", "val"} <= census.keys():
        return problems
    try:
        notes = check_census(census["train"], census["val"], names, default_table)
    except ValueError as error:
        return [str(error)]
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    weights = tuple(round(weight, 3) for weight in class_weights(census["train"].pixels))
    print(f"\nto give rare classes more weight (ENet's formula): train.class_weights={weights}")
    return problems


def write_lists(name: str, root: Path) -> list[str]:
    """Writes the lists of the files under ``root``. Returns the problems; if there are any, nothing was written."""
    lines, problems = find_lists(name, root)
    if not any(lines.values()):
        return [*problems, f"no image with its label was found under {root}; {LAYOUTS}"]
    moved = []
    # Drafts in the same file system (so that moving them is atomic), which are always removed.
    with TemporaryDirectory(prefix=".lists-", dir=root) as folder:
        drafts = Path(folder)
        for split, entries in lines.items():
            text, path = "".join(f"{line}\n" for line in entries), root / f"{split}.txt"
            old = path.read_text(encoding="utf-8-sig") if path.exists() else text
            if old != text and (relocated := relocate_list(old, root)) is not None:
                text = relocated
                moved.append(split)
                if Path(f"{path}.orig").exists():
                    problems.append(f"{path}.orig exists, where the old {path.name} would be kept; move it away")
            elif old != text:
                problems.append(f"{path} exists with other lines; move it away to write it again, or use --check")
            if text:
                (drafts / path.name).write_text(text, encoding="utf-8")
        problems += check_lists(name, root, drafts)
        for draft in [] if problems else sorted(drafts.iterdir()):
            path = root / draft.name
            if draft.stem in moved:
                shutil.copy2(path, f"{path}.orig")
                print(f"{path} had absolute paths, written anew relative to {root}; the old list is {path.name}.orig")
            draft.replace(path)
            print(f"wrote {path}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if there is no problem, 1 if there are problems and nothing was written."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("dataset", nargs="?", choices=tuple(COUNTS))
    parser.add_argument("root", nargs="?", type=Path, help="folder of the dataset; the lists are written there")
    parser.add_argument("--check", action="store_true", help="check the existing lists; write nothing")
    parser.add_argument("--config", help="check the lists of this config instead; write nothing")
    add_config_options(parser)
    options = parser.parse_args(arguments)
    name, root = options.dataset, options.root
    if (options.config is None) == (root is None) or (options.config is None and options.cfg_options):
        parser.error("give either a dataset and its folder, or --config (and --cfg-options)")
    if root is not None and not root.is_dir():
        parser.error(f"{root} is not a folder")
    writes = not (options.check or options.config)
    try:
        if options.config:
            problems = check_config(options.config, options.cfg_options)
        else:
            problems = write_lists(name, root) if writes else check_lists(name, root, root)
    except (OSError, ValueError) as error:
        problems = [str(error)]
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    return report_problems(problems, "; nothing was written" if writes else "")


def _describe(split: str, sizes: Sequence[tuple[int, int]], expected: int | None = None, count: int = 0) -> str:
    """Number and most frequent sizes, such as 'train  367 of 367, H x W: 720 x 960 (367)'."""
    missing = f" ({expected - count} missing)" if expected and count < expected else ""
    named = [f"{height} x {width} ({times})" for (height, width), times in Counter(sizes).most_common()]
    shown = f", H x W: {name_some(named, SIZES_SHOWN)}" if named else ""
    return f"{split:9}{count:6}{f' of {expected}' if expected else ''}{missing}{shown}"


if __name__ == "__main__":
    sys.exit(main())
