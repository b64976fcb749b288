"""Prints what teacher.source can use of a network: its modules with shapes, taps, logits, classes, normalisation."""

from pathlib import Path

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

import numpy as np
import torch

from configs.schema import Teacher
from datasets.listed import distinct_colours
from datasets.pixels import open_image
from models import build_wrapped
from models.inference import predict
from scripts._command import command_parser, one_line_errors
from utils.config import parse_options, validate
from utils.visualize import overlay, write_png

EXAMPLES = """examples:
  python scripts/inspect_network.py transformers:FOLDER
  python scripts/inspect_network.py torchvision:fcn_resnet50 --options weights=fcn.pth --image street.png --out seen.png
"""


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("source", help="the same as teacher.source: KIND:NAME")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="other keys of teacher")
    parser.add_argument("--image", type=Path, metavar="FILE", help="predict its classes")
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="image to write (prediction.png)")
    args = parser.parse_args(arguments)
    with one_line_errors():
        keys = {"source": args.source, **parse_options(args.options)}
        network, report = build_wrapped(**validate(keys, Teacher, "teacher").wrapped)
        names = report.metadata.get("class_names")
        print(f"{report}\nmodules that give maps on an image of {network.side} x {network.side} (C x h x w)")
        for name, shape in network.tap_candidates().items():
            print(f"  {name:<60} {' x '.join(map(str, shape))}")
        print(f"taps: {', '.join(f'{name} {c}@{s}' for name, (c, s) in network.spec.taps.items()) or 'none'}")
        print(f"logits: {network.num_classes} classes at stride {network.spec.logit_stride}, {network.spec.family}")
        print(f"classes: {names or 'no names'}\nnormalization: {network.normalization}")
        taps = {name: f"{path}:{inner}".removesuffix(":") for name, (path, inner) in network.places.items()}
        keys |= {"taps": taps, "pad_to": network.pad_to}
        print(f"teacher = dict({', '.join(f'{key}={value!r}' for key, value in keys.items())})")
        if args.image is not None:
            image = np.array(open_image(args.image)[:])
            classes = predict(network, torch.from_numpy(image).permute(2, 0, 1))[0].numpy()
            write_png(args.out, overlay(image, classes, distinct_colours(network.num_classes)))
            print(f"{args.out}: the image under the colours of its classes")


if __name__ == "__main__":
    main()
