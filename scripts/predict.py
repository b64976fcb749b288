"""Predicts the classes of images and videos, and draws them over the images.

It needs only the file of a trained network. For a file of a run, the settings of its validation are used (mode, scales,
precision), so the predictions are those that eval.py evaluates; --scales overrides the scales. An ONNX file gets whole
images at scale 1, or at --scales. Writes NAME.png for each image, NAME.mp4 for each video (without sound; H.264 if PyAV
or ffmpeg is installed) and legend.png; the output of a folder has the same subfolders. Images and videos are first
rotated upright. An image that does not fit into memory is predicted in windows (--window).
"""

import argparse
import time
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from configs.schema import Eval, Train, autocast_dtype
from datasets.pixels import open_image
from eval import factors
from models import SegOutput, load_student
from models.inference import LARGEST_SCALE, predict, window_starts
from models.onnx import OnnxModel
from models.placement import place
from models.sizes import size_errors
from scripts._command import command_parser, one_line_errors
from scripts._device import DEFAULT, usable_device
from scripts._inputs import IMAGES, VIDEOS, Job, check_outputs, find_jobs
from scripts._video import Video, encoder, write_video
from utils.config import validate
from utils.console import say
from utils.files import user_path
from utils.visualize import overlay, panel, write_png

EXAMPLES = """examples:
  python scripts/predict.py work_dirs/quickstart/hmkd/student.safetensors data/few/val --out overlays
  python scripts/predict.py student.safetensors photo.jpg street.mp4 --out overlays --scales 0.5 --save-pred
  python scripts/predict.py student.onnx photo.jpg --out overlays
  python scripts/predict.py student.safetensors street.mp4 --out overlays --side-by-side --legend
  python scripts/predict.py student.safetensors city.tif --out overlays --window 2048
"""


def read_image(path: Path, image_range: tuple[float, float] | None = None) -> np.ndarray:
    """Decodes an image as datasets do, but applies an EXIF rotation -> H W 3 uint8 RGB.

    Raises:
        ValueError: the file cannot be decoded completely, has several pictures, or as ``open_image``.
    """
    try:
        pixels = open_image(path, image_range)[:]
    except ValueError as error:
        hint = "" if path.suffix.lower() in IMAGES else f" (if it is a video, name it {', '.join(VIDEOS)})"
        raise ValueError(f"{error}{hint}") from error
    with Image.open(path) as picture:
        # MPO is the JPEG of some phones: its further pictures are previews of the first.
        several = getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO"
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if several:
        raise ValueError(
            f"{path} has {picture.n_frames} pictures; expected one: save each as a file, or all as a video"
        )
    upright = Image.fromarray(pixels)
    upright.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(ImageOps.exif_transpose(upright))


class OnnxNetwork(nn.Module):
    """An ONNX file as a network. Without the output ``logits``, its class maps become one-hot logits.

    At another scale than 1, these give coarser outlines than logits.
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
    """A trained network, built from its file alone.

    Args:
        path: an ``.onnx`` file, or what ``load_student`` reads.
        device: by default the GPU where there is one. ONNX files run on the CPU.
        scales: instead of those of the validation.
        source: as for ``load_student``.
        window: side of the windows in pixels; None: an image is predicted at once.

    Attributes:
        metadata: of the file.
        settings: mode, scales and flip of the prediction.
        image_range: of the run's data, for images with 16 bits a channel.

    Raises:
        FileNotFoundError, ValueError: as ``load_student`` and ``OnnxModel``; and for an ONNX file on another device.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device | None = None,
        scales: list[float] | None = None,
        source: str | None = None,
        window: int | None = None,
    ):
        self.window = window
        is_onnx = path.suffix.lower() == ".onnx"
        if is_onnx and device is not None and device.type != "cpu":
            raise ValueError(f"--device {device}: {path} is an ONNX file, which runs only on the CPU")
        if is_onnx:
            self.model, self.device = OnnxNetwork(path), torch.device("cpu")
            self.metadata = self.model.model.metadata
        else:
            self.model, self.metadata = load_student(path, source)
            self.device = device or torch.device(DEFAULT)
        config = self.metadata.get("config", {})
        self.image_range = config.get("data", {}).get("image_range")
        asked = {} if scales is None else {"scales": scales}
        self.settings = validate({**config.get("eval", {}), **asked}, Eval, f"{path}: config.eval")
        self.train = validate(
            config.get("train", {"batch_size": 1, "precision": "fp32"}), Train, f"{path}: config.train"
        )
        place(self.model, self.device, self.train.channels_last)

    def __str__(self) -> str:
        scale = self.metadata.get("scale", 1)
        built_in = f" of images that the file itself resizes by {scale:g}" if scale != 1 else ""
        known = "" if {"scale", "config"} & self.metadata.keys() else " (the file has no settings of a validation)"
        scales = ",".join(f"{scale:g}" for scale in self.settings.scales)
        flip = ", flip" if self.settings.flip else ""
        classes = len(self.metadata["class_names"])
        return f"{classes} classes, {self.device}, {self.settings.mode} at scale {scales}{built_in}{flip}{known}"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """H W 3 uint8 RGB -> class map H W uint8.

        Windows overlap by a quarter, and the seam is in the middle of the overlap: there the network has seen the
        surroundings of both sides.
        """
        side = self.window or max(image.shape)
        margin, classes = side // 8, np.empty(image.shape[:2], np.uint8)
        starts = [window_starts(length, min(side, length), side - 2 * margin) for length in image.shape[:2]]
        for top in starts[0]:
            for left in starts[1]:
                found = self.predict(image[top : top + side, left : left + side])
                y, x = (margin if start else 0 for start in (top, left))
                classes[top + y : top + side, left + x : left + side] = found[y:, x:]
        return classes

    @cached_property
    def legend(self) -> np.ndarray:
        """Numbers, names and colours of the classes as a picture."""
        entries = enumerate(zip(self.metadata["class_names"], self.metadata["palette"], strict=True))
        colors = {f"{number} {name}": tuple(color) for number, (name, color) in entries}
        blank = np.full((1, 1248, 3), 255, np.uint8)  # a panel of nothing: its title and its legend remain
        return panel([[("classes", blank)]], colors, width=1280)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """An image, or a window of it, at once."""
        dtype = autocast_dtype(self.settings.precision or self.train.precision)
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous().to(self.device)
        window = self.settings.crop_size if self.settings.mode == "slide" else None
        with (
            size_errors(self.model, "too small", image.shape[:2], self.settings.scales, window),
            torch.autocast(self.device.type, dtype, enabled=dtype is not None),
        ):
            return predict(self.model, pixels, **self.settings.protocol)[0].cpu().numpy()


def draw(image: np.ndarray, classes: np.ndarray, predictor: Predictor, args: argparse.Namespace) -> np.ndarray:
    """The image under the colours of its classes; if asked, the image itself to the left, and the legend below."""
    palette = predictor.metadata["palette"]
    bands = [slice(start, start + 1024) for start in range(0, len(image), 1024)]  # blending takes much memory
    picture = np.concatenate([overlay(image[rows], classes[rows], palette, args.alpha) for rows in bands])
    if args.side_by_side:
        picture = np.concatenate([image, picture], axis=1)
    if args.legend:
        width, (height, whole) = picture.shape[1], predictor.legend.shape[:2]
        size = width, max(1, round(height * width / whole))
        picture = np.concatenate([picture, cv2.resize(predictor.legend, size, interpolation=cv2.INTER_AREA)])
    return picture


def predict_image(job: Job, predictor: Predictor, args: argparse.Namespace) -> None:
    image = read_image(job.source, predictor.image_range)
    classes = predictor(image)
    write_png(job.overlay, draw(image, classes, predictor, args))
    if args.save_pred:
        write_png(job.classes, classes)


def predict_video(job: Job, predictor: Predictor, args: argparse.Namespace) -> int:
    """Writes the overlays of a video; prints and returns the number of its frames."""
    video = Video(job.source)

    def overlays():
        bar = tqdm(video, job.source.name, video.announced or None, leave=False, disable=None, unit="frame")
        for number, frame in enumerate(bar):
            classes = predictor(frame)
            if args.save_pred:
                write_png(job.classes / f"{number:06d}.png", classes)
            yield draw(frame, classes, predictor, args)

    count = write_video(job.overlay, overlays(), video.fps)
    early = f"; its header says {video.announced}: is it truncated?" if count < video.announced else ""
    say(f"{job.source}: {count} frames at {video.fps:g} frames/s{early}")
    return count


def run(args: argparse.Namespace) -> None:
    jobs = find_jobs(args.inputs, args.out)
    check_outputs(jobs, args.out / "legend.png", args.save_pred)
    if args.window:
        Image.MAX_IMAGE_PIXELS = None  # Pillow refuses huge images
    predictor = Predictor(args.checkpoint, args.device, args.scales, args.source, args.window)
    say(f"{args.checkpoint}: {predictor}")
    if encoder() == "OpenCV" and any(job.is_video for job in jobs):
        say("videos are written as MPEG-4, which browsers do not play; for H.264: pip install av, or install ffmpeg")
    write_png(args.out / "legend.png", predictor.legend)

    start, images, frames = time.perf_counter(), 0, []
    for job in tqdm(jobs, leave=False, disable=None, unit="file"):
        try:
            if job.is_video:
                frames.append(predict_video(job, predictor, args))
            else:
                predict_image(job, predictor, args)
                images += 1
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            done = images + len(frames)
            raise ValueError(
                f"{error}\nstopped at {job.source}: {done} of {len(jobs)} are finished, in {args.out}"
            ) from error
    rate = (images + sum(frames)) / (time.perf_counter() - start)
    say(f"wrote to {args.out}: images {images}, videos {len(frames)} (frames {sum(frames)}); {rate:.1f} images/s")


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="student.safetensors, *.pt of a run, or .onnx"
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image, video, or folder of them")
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--alpha", type=float, default=0.5, metavar="A", help="opacity of the colours, 0..1 (default 0.5)"
    )
    parser.add_argument(
        "--scales", type=factors, metavar="0.5,1.0", help="average over images resized by these factors"
    )
    parser.add_argument(
        "--save-pred",
        action="store_true",
        help="also write class ids: NAME_classes.png for an image, NAME_classes/000000.png ... for a video",
    )
    parser.add_argument("--side-by-side", action="store_true", help="put the image to the left of its overlay")
    parser.add_argument("--legend", action="store_true", help="put the class names below each image and video")
    parser.add_argument(
        "--window", type=int, metavar="S", help="predict huge images in overlapping windows of S x S pixels"
    )
    parser.add_argument("--device", type=usable_device, metavar="D", help=f"cpu, cuda:1, mps (default here: {DEFAULT})")
    parser.add_argument("--source", metavar="python:...", help="allow this function (student.source) to be called")
    args = parser.parse_args(arguments)
    if not 0 <= args.alpha <= 1:
        parser.error(f"--alpha {args.alpha}: expected 0..1")
    if args.scales and not all(0 < scale <= LARGEST_SCALE for scale in args.scales):
        parser.error(f"--scales {args.scales}: expected factors above 0 and at most {LARGEST_SCALE:g}")
    if args.window is not None and args.window < 64:
        parser.error(f"--window {args.window}: expected 64 or more")
    with one_line_errors(f"interrupted: the finished files are in {args.out}"):
        run(args)


if __name__ == "__main__":
    main()
