"""Lays a trained network's classes over images, folders of them and videos.

The network's file is all that it needs. A file of a run is used as its config says that it was validated (mode, scales,
precision), so that the classes are those that eval.py scores; --scales overrides its scales. An ONNX file sees whole
images at scale 1 unless --scales says otherwise. Writes NAME.png for each image, NAME.mp4 for each video (without its
sound) and legend.png; a folder is searched through and mirrored. Images and videos are turned upright first.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

if not __package__:  # run as a file: its own folder is on the import path, the repository's root is not
    from _as_module import restart_as_module

    restart_as_module(__file__)

from configs.schema import Eval, Train
from datasets.base import IMAGE_MODES
from eval import factors
from models import SegOutput, load_student
from models.inference import LARGEST_SCALE, predict
from models.onnx import OnnxModel
from models.weights.metadata import check_metadata
from scripts._video import Video, write_video
from utils.config import validate
from utils.console import say
from utils.visualize import overlay, panel, write_png

EXAMPLES = """examples:
  python scripts/predict.py work_dirs/quickstart/hmkd/student.safetensors data/few/val --out overlays
  python scripts/predict.py student.safetensors photo.jpg street.mp4 --out overlays --scales 0.5 --save-pred
  python scripts/predict.py student.onnx photo.jpg --out overlays
"""
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # what a folder is searched for
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


class Job(NamedTuple):
    """One image or video, and where its overlay goes: ``target`` without its suffix."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in VIDEOS

    @property
    def overlay(self) -> Path:
        return self.target.with_name(self.target.name + (".mp4" if self.is_video else ".png"))

    @property
    def classes(self) -> Path:
        """The class map's file, or for a video the folder of its frames' class maps."""
        return self.target.with_name(self.target.name + ("_classes" if self.is_video else "_classes.png"))


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and its folders, relative to it, sorted; none that is hidden, and no folder twice in a path.

    Links are followed, but not one that leads back up: that would never end.
    """
    found, entered = [], {folder: {folder.resolve()}}
    for place, folders, files in os.walk(folder, followlinks=True):
        above = entered.pop(Path(place))
        inner = {name: (Path(place) / name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = [name for name, target in inner.items() if target not in above]
        entered |= {Path(place) / name: above | {inner[name]} for name in folders}
        paths = [Path(place) / name for name in files if not name.startswith(".")]
        found += [path.relative_to(folder) for path in paths if path.is_file()]
    return sorted(found)


def find_jobs(inputs: list[Path], out: Path) -> list[Job]:
    """Every image and video of ``inputs``, those of a folder in the order of their names; hidden files are left alone.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a folder holds neither images nor videos, or holds ``out``.
    """
    jobs = []
    for path in inputs:
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"--out {out} lies in the input folder {path}: overlays would become inputs")
            names = [name for name in files_below(path) if name.suffix.lower() in IMAGES + VIDEOS]
            if not names:
                raise ValueError(f"{path} holds no image and no video; looked for {', '.join(IMAGES + VIDEOS)}")
            jobs += [Job(path / name, out / name.parent / name.stem) for name in names]
        elif path.is_file():
            jobs.append(Job(path, out / path.stem))
        else:
            raise FileNotFoundError(f"input {path} does not exist; expected an image, a video or a folder of them")
    return jobs


def check_outputs(jobs: list[Job], legend: Path, save_pred: bool) -> None:
    """ValueError where two inputs would be written to one file, or an input would be overwritten."""
    sources = {job.source.resolve() for job in jobs}
    owners: dict[Path, str | Path] = {legend: "the legend"}
    for job in jobs:
        for path in [job.overlay, job.classes] if save_pred else [job.overlay]:
            if path in owners:
                raise ValueError(
                    f"{owners[path]} and {job.source} would both be written to {path}: rename one, or give them to "
                    f"two calls with an --out each"
                )
            owners[path] = job.source
    for path, owner in owners.items():
        if path.resolve() in sources:
            raise ValueError(f"{path}, to be written for {owner}, is an input: give another --out")


def read_image(path: Path) -> np.ndarray:
    """Decodes an image as datasets do, but upright: an EXIF rotation is applied -> H W 3 uint8 RGB.

    Raises:
        ValueError: the file cannot be decoded in full, holds several pictures, or another pixel format.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            # MPO is a phone's JPEG: further pictures in it are previews of the first.
            several = getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO"
            upright = ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... by format and by kind of damage
        raise ValueError(
            f"{path} cannot be decoded ({error}); expected an undamaged image, or a video named {', '.join(VIDEOS)}"
        ) from error
    if several:
        raise ValueError(f"{path} holds {picture.n_frames} pictures; expected one: save them one by one, or as a video")
    if upright.mode not in IMAGE_MODES:
        raise ValueError(
            f"{path} has pixel format {upright.mode!r}; expected one of {', '.join(IMAGE_MODES)}: convert it to RGB"
        )
    return np.array(upright.convert("RGB"))


class OnnxNetwork(nn.Module):
    """An ONNX file in the place of a network; without ``logits`` in it, its class maps count as one-hot logits.

    At another scale than 1 these give coarser outlines than logits would.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.model = OnnxModel(path)

    def forward(self, images: Tensor) -> SegOutput:
        outputs = self.model.run(images.round().to(torch.uint8))
        if "logits" in outputs:
            return SegOutput(torch.from_numpy(outputs["logits"]), {}, None)
        numbers = torch.arange(len(self.model.metadata["class_names"])).view(-1, 1, 1)
        return SegOutput((torch.from_numpy(outputs["classes"]).unsqueeze(1) == numbers).float(), {}, None)


class Predictor:
    """A trained network, from its file alone.

    Args:
        path: of ``.onnx``, or what ``load_student`` reads.
        device: where it runs; the GPU where there is one by default. ONNX files run on the CPU.
        scales: in place of those that the file was validated with.

    Attributes:
        about: what the file says of itself.
        settings: how its images are seen.

    Raises:
        FileNotFoundError, ValueError: as ``load_student`` and ``OnnxModel``; and for an ONNX file on another device.
    """

    def __init__(self, path: Path, device: torch.device | None = None, scales: list[float] | None = None):
        is_onnx = path.suffix.lower() == ".onnx"
        if is_onnx and device is not None and device.type != "cpu":
            raise ValueError(f"--device {device}: {path} is an ONNX file, which runs on the CPU here")
        if is_onnx:
            self.model, self.device = OnnxNetwork(path), torch.device("cpu")
            self.metadata = self.model.model.metadata
            check_metadata(self.metadata, str(path))
        else:
            self.model, self.metadata = load_student(path)
            self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = self.metadata.get("config", {})
        asked = {} if scales is None else {"scales": scales}
        self.settings = validate({**config.get("eval", {}), **asked}, Eval, f"{path}: config.eval")
        self.train = validate(
            config.get("train", {"batch_size": 1, "precision": "fp32"}), Train, f"{path}: config.train"
        )
        layout = torch.channels_last if self.train.channels_last else torch.contiguous_format
        self.model.to(self.device, memory_format=layout)

    def __str__(self) -> str:
        scale = self.metadata.get("scale", 1)
        built_in = f", after the {scale:g} that is built into the file" if scale != 1 else ""
        known = "" if {"scale", "config"} & self.metadata.keys() else " (the file does not say how it was validated)"
        scales = ",".join(f"{scale:g}" for scale in self.settings.scales)
        flip = ", flip" if self.settings.flip else ""
        classes = len(self.metadata["class_names"])
        return f"{classes} classes, {self.device}, {self.settings.mode} at scale {scales}{built_in}{flip}{known}"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """H W 3 uint8 RGB -> class map H W uint8."""
        dtype = self.train.autocast_dtype
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous().to(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return predict(self.model, pixels, **self.settings.protocol)[0].cpu().numpy()


def legend(about: dict) -> np.ndarray:
    """The classes' numbers, names and colours as a picture."""
    entries = enumerate(zip(about["class_names"], about["palette"], strict=True))
    colors = {f"{number} {name}": tuple(color) for number, (name, color) in entries}
    blank = np.full((1, 640, 3), 255, np.uint8)  # a panel of nothing: its title and its legend remain
    return panel([[blank]], ["classes"], colors, row_height=1)


def predict_image(job: Job, predictor: Predictor, alpha: float, save_pred: bool) -> None:
    image = read_image(job.source)
    classes = predictor(image)
    write_png(job.overlay, overlay(image, classes, predictor.metadata["palette"], alpha))
    if save_pred:
        write_png(job.classes, classes)


def predict_video(job: Job, predictor: Predictor, alpha: float, save_pred: bool) -> int:
    """Gives the number of frames, and says it."""
    video = Video(job.source)

    def overlays():
        bar = tqdm(video, job.source.name, video.announced or None, leave=False, disable=None, unit="frame")
        for number, frame in enumerate(bar):
            classes = predictor(frame)
            if save_pred:
                write_png(job.classes / f"{number:06d}.png", classes)
            yield overlay(frame, classes, predictor.metadata["palette"], alpha)

    count = write_video(job.overlay, overlays(), video.fps)
    early = f"; its header announces {video.announced}: is it cut off?" if count < video.announced else ""
    say(f"{job.source}: {count} frames at {video.fps:g} frames/s{early}")
    return count


def device(name: str) -> torch.device:
    """A device that tensors can be put on and read from."""
    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name} is not usable here: {str(error).splitlines()[0]}") from error


def run(args: argparse.Namespace) -> None:
    jobs = find_jobs(args.inputs, args.out)
    check_outputs(jobs, args.out / "legend.png", args.save_pred)
    predictor = Predictor(args.checkpoint, args.device, args.scales)
    say(f"{args.checkpoint}: {predictor}")
    write_png(args.out / "legend.png", legend(predictor.metadata))

    start, images, frames = time.perf_counter(), 0, []
    for job in tqdm(jobs, leave=False, disable=None, unit="file"):
        try:
            if job.is_video:
                frames.append(predict_video(job, predictor, args.alpha, args.save_pred))
            else:
                predict_image(job, predictor, args.alpha, args.save_pred)
                images += 1
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            done = images + len(frames)
            raise ValueError(
                f"{error}\nstopped at {job.source}: {done} of {len(jobs)} are done, in {args.out}"
            ) from error
    rate = (images + sum(frames)) / (time.perf_counter() - start)
    say(f"wrote to {args.out}: images {images}, videos {len(frames)} (frames {sum(frames)}); {rate:.1f} images/s")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "predict.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="student.safetensors, *.pt of a run, or .onnx"
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image, video, or folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--alpha", type=float, default=0.5, metavar="A", help="the colours' share, 0..1 (default 0.5)")
    parser.add_argument("--scales", type=factors, metavar="0.5,1.0", help="average over these factors on the size")
    parser.add_argument(
        "--save-pred",
        action="store_true",
        help="write class numbers as well: NAME_classes.png of an image, NAME_classes/000000.png ... of a video",
    )
    parser.add_argument("--device", type=device, metavar="D", help="cpu, cuda, cuda:1 (default: cuda where it is)")
    args = parser.parse_args(arguments)
    if not 0 <= args.alpha <= 1:
        parser.error(f"--alpha {args.alpha}: expected 0..1")
    if args.scales and not all(0 < scale <= LARGEST_SCALE for scale in args.scales):
        parser.error(f"--scales {args.scales}: expected factors above 0 and at most {LARGEST_SCALE:g}")
    try:
        run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: what was written stays in {args.out}")


if __name__ == "__main__":
    main()
