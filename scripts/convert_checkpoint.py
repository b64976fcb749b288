"""Converts a checkpoint to .safetensors: only its tensors, with their names, so that no code can be executed.

Most files need no conversion: student.pretrained and teacher.weights read them directly. Two kinds do: a file with
more than tensors (--trust), and a file whose network was trained with a normalisation that is unusual for its layout
(--normalization).
"""

from pathlib import Path

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from engine.checkpoint import save_student
from models import NORMALIZATIONS
from models.weights.tensors import read_tensors
from scripts._command import command_parser, one_line_errors

EXAMPLES = """examples:
  python scripts/convert_checkpoint.py downloads/iter_160000.pth pretrained/teacher.safetensors --trust
  python scripts/convert_checkpoint.py downloads/best.pth pretrained/teacher.safetensors --normalization imagenet
"""


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="torch file or .safetensors")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let FILE execute any code that it contains: only if you would run a program from the same source",
    )
    parser.add_argument("--normalization", choices=NORMALIZATIONS, help="normalisation of FILE's training images")
    args = parser.parse_args(arguments)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    with one_line_errors():
        if args.out.exists():
            raise ValueError(f"{args.out} exists already: remove it, or choose another name")
        weights = read_tensors(args.checkpoint, args.trust)
        tensors, metadata = weights.tensors, weights.metadata
        if args.normalization:
            metadata = {**metadata, "normalization": NORMALIZATIONS[args.normalization]._asdict()}
        # Clones, because two names may share one tensor, which .safetensors cannot store.
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        try:
            save_student(args.out, tensors, metadata)
        except TypeError as error:
            raise ValueError(f"{args.checkpoint}: its metadata cannot be written as JSON: {error}") from error
    print("; ".join([f"{args.out}: {len(tensors)} tensors of {args.checkpoint}", *weights.notes]))


if __name__ == "__main__":
    main()
