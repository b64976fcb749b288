"""Writes the train, val and test lists of a published data set, after checking every image and label in them.

To check a file, it is read completely, as in training and evaluation. With --config the lists of a config are checked,
for any data set.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

if not __package__:  # run as a file: the repository's root is not on the import path
    from _as_module import restart_as_module

    restart_as_module(__file__)

from configs.schema import Experiment
from datasets import DATASETS
from datasets.base import SegDataset
from engine.build import build_split
from scripts.preparation.layouts import COUNTS, FINDERS
from utils.config import load_config
from utils.names import VOID

EXAMPLES = """\
examples:
  python scripts/prepare_lists.py cityscapes data/cityscapes
      data/cityscapes/leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png
      data/cityscapes/gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png (or _labelTrainIds.png)
  python scripts/prepare_lists.py camvid data/camvid
      SegNet's files:    data/camvid/{train,trainannot,val,valannot,test,testannot}/*.png
      the original ones: data/camvid/{701_StillsRaw_full/*.png,LabeledApproved_full/*_L.png}, or {images,labels}
  python scripts/prepare_lists.py ade20k data/ade20k
      data/ade20k/ADEChallengeData2016/{images,annotations}/{training,validation}
  python scripts/prepare_lists.py voc data/voc
      data/voc/VOCdevkit/VOC2012/{ImageSets/Segmentation,JPEGImages,SegmentationClass,SegmentationClassAug}
  python scripts/prepare_lists.py coco_stuff data/coco_stuff
      data/coco_stuff/{train2017,val2017,stuffthingmaps_trainval2017/train2017,stuffthingmaps_trainval2017/val2017},
      or {images,annotations}/{train2017,val2017}
  python scripts/prepare_lists.py camvid data/camvid --check
      checks the existing lists, and writes nothing
  python scripts/prepare_lists.py --config configs/hmkd/camvid_b4_r18.py
      checks the lists of a config, and writes nothing
"""
SHOWN = 20  # problems printed
EXIF_ORIENTATION = 274


def check_lists(name: str, root: Path, folder: Path) -> list[str]:
    """Reads the lists in ``folder`` as training does and prints their counts. Returns the problems."""
    problems = []
    paths = {split: folder / f"{split}.txt" for split in COUNTS[name]}
    if not any(path.is_file() for path in paths.values()):
        problems.append(f"{folder} has none of {', '.join(path.name for path in paths.values())}")
    for split, path in paths.items():
        if path.is_file():
            problems += check_split(split, partial(DATASETS[name], root, path.resolve()), COUNTS[name][split])
        else:
            print(_count(split, 0, COUNTS[name][split]))
    return problems


def check_config(source: str, options: Sequence[str]) -> list[str]:
    """Reads the lists of a config as training and evaluation do, and prints their counts.

    Returns:
        The problems.
    """
    config = load_config(source, Experiment, [*options, "data.packed=None"])
    problems = []
    for split in ("train", "val", "test"):
        if getattr(config.data, f"{split}_list") is None:
            continue
        build = partial(build_split, config, source, split, check_files=False)
        problems += check_split(split, build, labelled=split != "test")
    return problems


def check_split(
    split: str, build: Callable[[], SegDataset], expected: int | None = None, labelled: bool = False
) -> list[str]:
    """Prints the number of samples of a split, and warnings. Returns the problems.

    Args:
        split: its name.
        build: returns its data set.
        expected: its number of samples if it is complete.
        labelled: each sample must have a label.
    """
    try:
        dataset = build()
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = [f"{image}: has no label in its list" for image, label in dataset.files if labelled and label is None]
    missing = set(dataset.missing_files())
    problems += [f"{path}: is missing, or is a broken link" for path in sorted(missing)]
    there = [index for index, pair in enumerate(dataset.files) if missing.isdisjoint(pair)]
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda index: check_sample(dataset, index), there)
        samples = list(tqdm(results, split, len(there), leave=False, disable=None))  # no bar in a log file
    print(_count(split, len(dataset), expected))
    for what, files in {
        "labels are void everywhere and teach nothing": [sample.void for sample in samples if sample.void],
        "images have an EXIF rotation, which is not applied: their labels must fit the pixels as stored": [
            sample.rotated for sample in samples if sample.rotated
        ],
    }.items():
        if files:
            print(f"warning: {split}: {len(files)} {what}; the first is {files[0]}", file=sys.stderr)
    return problems + [sample.problem for sample in samples if sample.problem]


class Sample(NamedTuple):
    """The result for one sample: a problem, a label that is void everywhere, an image with an EXIF rotation."""

    problem: str | None = None
    void: Path | None = None
    rotated: Path | None = None


def check_sample(dataset: SegDataset, index: int) -> Sample:
    """Reads one sample completely."""
    image, label = dataset.files[index]
    try:
        _, truth = dataset.load(index)
        with Image.open(image) as picture:
            rotated = picture.getexif().get(EXIF_ORIENTATION, 1) != 1
    except (OSError, ValueError) as error:
        return Sample(problem=str(error))
    void = label is not None and (truth == VOID).all()
    return Sample(None, label if void else None, image if rotated else None)


def write_lists(name: str, root: Path) -> list[str]:
    """Writes the lists of the files under ``root``. Returns the problems; if there are any, nothing was written."""
    lines, problems = FINDERS[name](root)
    if not any(lines.values()):
        return [*problems, f"no image with its label was found under {root}; the known layouts are\n{EXAMPLES}"]
    # Drafts in the same file system (so that moving them is atomic), which are always removed.
    with TemporaryDirectory(prefix=".lists-", dir=root) as folder:
        drafts = Path(folder)
        problems += write_drafts(lines, root, drafts)
        problems += check_lists(name, root, drafts)
        for draft in [] if problems else sorted(drafts.iterdir()):
            draft.replace(root / draft.name)
            print(f"wrote {root / draft.name}")
    return problems


def write_drafts(lines: dict[str, list[str]], root: Path, folder: Path) -> list[str]:
    """Writes the lists to ``folder``. Returns a problem for each list in ``root`` that has other lines."""
    problems = []
    for split, entries in lines.items():
        if not entries:
            continue
        text, path = "\n".join(entries) + "\n", root / f"{split}.txt"
        with open(folder / path.name, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and path.read_text(encoding="utf-8") != text:
            problems.append(f"{path} exists with other lines; move it away to write it again, or use --check")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if there is no problem, 1 if there are problems and nothing was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", choices=tuple(COUNTS))
    parser.add_argument("root", nargs="?", type=Path, help="folder of the data set, for the lists too")
    parser.add_argument("--check", action="store_true", help="check the existing lists; write nothing")
    parser.add_argument("--config", help="check the lists of this config instead; write nothing")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override config values")
    options = parser.parse_args(arguments)
    name, root = options.dataset, options.root
    if (options.config is None) == (root is None) or (options.config is None and options.cfg_options):
        parser.error("give either a data set and its folder, or --config (and --cfg-options)")
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
    for problem in problems[:SHOWN]:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        more = f" ({len(problems) - SHOWN} more than shown)" if len(problems) > SHOWN else ""
        print(f"problems: {len(problems)}{more}{'; nothing was written' if writes else ''}", file=sys.stderr)
    return 1 if problems else 0


def _count(split: str, count: int, expected: int | None) -> str:
    missing = f" ({expected - count} missing)" if expected and count < expected else ""
    return f"{split:9}{count:6}{f' of {expected}' if expected else ''}{missing}"


if __name__ == "__main__":
    sys.exit(main())
