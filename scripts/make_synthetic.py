"""Makes a dataset of synthetic streets in CamVid's layout; every CamVid config can read it (``data.root``)."""

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from scripts._command import command_parser
from scripts.street.scene import write_synthetic

EXAMPLES = """examples, from the repository root:
  python scripts/make_synthetic.py --out data/synthetic --train 400 --val 100
  python scripts/make_synthetic.py --out data/synthetic_large --train 2000 --val 200 --test 200 --size 360 480 --seed 7
"""


def main(argv: list[str] | None = None):
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--train", type=int, required=True, metavar="N", help="training images")
    parser.add_argument("--val", type=int, required=True, metavar="N", help="validation images")
    parser.add_argument("--test", type=int, default=0, metavar="N", help="test images (default 0)")
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"), help="default 180 240")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the dataset (default 0)")
    args = parser.parse_args(argv)
    try:
        written = write_synthetic(args.out, args.train, args.val, args.test, tuple(args.size), args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{args.out}: {'written' if written else 'this dataset already exists; nothing to do'}")


if __name__ == "__main__":
    main()
