"""Rewrites any checkpoint as .safetensors: its tensors alone, under their own names, which nothing can execute.

Most files need no conversion: student.pretrained and teacher.weights read them as they are. Two do: one that holds more
than tensors (--trust), and one whose network was not trained on the images that its layout's networks usually are
(--normalization).
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: its own folder is on the import path, the repository's root is not
    from _as_module import restart_as_module

    restart_as_module(__file__)

from engine.checkpoint import save_student
from models import NORMALIZATIONS
from models.weights.sources import read_tensors

EXAMPLES = """examples:
  python scripts/convert_checkpoint.py downloads/iter_160000.pth pretrained/teacher.safetensors --trust
  python scripts/convert_checkpoint.py downloads/best.pth pretrained/teacher.safetensors --normalization imagenet
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "convert_checkpoint.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="torch file or .safetensors")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let FILE execute the code it holds, which can be any: only for a source you would run a program of",
    )
    parser.add_argument(
        "--normalization", choices=NORMALIZATIONS, help="of the images that the network in FILE was trained on"
    )
    args = parser.parse_args(arguments)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    try:
        if args.out.exists():
            raise ValueError(f"{args.out} exists already: remove it, or choose another name")
        tensors, about = read_tensors(args.checkpoint, args.trust)
        if args.normalization:
            about = {**about, "normalization": NORMALIZATIONS[args.normalization]._asdict()}
        # Clones: a file may name one tensor twice, which .safetensors cannot.
        save_student(args.out, {key: tensor.clone() for key, tensor in tensors.items()}, about)
    except TypeError as error:  # of JSON
        sys.exit(f"error: {args.checkpoint}: what it says of itself holds more than plain data: {error}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}: {len(tensors)} tensors of {args.checkpoint}")


if __name__ == "__main__":
    main()
