"""Reads and writes video files. Frames are H W 3 uint8 RGB arrays."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

QUALITY = "20"  # of H.264, the encoder's crf: smaller is better
Write = Callable[[np.ndarray], object]  # writes a frame


class Video:
    """The frames of a video file in order, rotated upright.

    Args:
        path: the file.

    Attributes:
        path: the file.
        fps: frames a second.
        announced: number of frames in the file's header, which may be wrong; 0 where it has none.

    Raises:
        ValueError: it cannot be opened as a video, or has no frame rate.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ValueError(f"{path} cannot be opened as a video (damaged, truncated, or not a video)")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        if not self.fps > 0:
            raise ValueError(f"{path} has no frame rate (found {self.fps}); convert it to .mp4")

    def __iter__(self) -> Iterator[np.ndarray]:
        """H W 3 frames, only once; ValueError where there is none."""
        count = 0
        while (found := self._capture.read())[0]:
            count += 1
            yield cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB)
        if not count:
            raise ValueError(f"{self.path} has no frame that can be decoded")


def encoder() -> str:
    """What videos are written with: ``'PyAV'`` or ``'ffmpeg'`` as H.264, else ``'OpenCV'`` as MPEG-4."""
    return "PyAV" if find_spec("av") else "ffmpeg" if shutil.which("ffmpeg") else "OpenCV"


@contextmanager
def _pyav(path: Path, fps: float, height: int, width: int) -> Iterator[Write]:
    import av

    with av.open(str(path), "w") as file:
        rate = Fraction(fps).limit_denominator(1001)
        stream = file.add_stream("h264", rate=rate, options={"crf": QUALITY})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        yield lambda frame: file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())


@contextmanager
def _ffmpeg(path: Path, fps: float, height: int, width: int) -> Iterator[Write]:
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    target = ["-c:v", "h264", "-crf", QUALITY, "-pix_fmt", "yuv420p", str(path)]
    command = ["ffmpeg", "-y", "-loglevel", "error", *source, *target]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield lambda frame: process.stdin.write(frame.tobytes())


@contextmanager
def _opencv(path: Path, fps: float, height: int, width: int) -> Iterator[Write]:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    try:
        if not writer.isOpened():
            raise ValueError(f"MPEG-4 cannot hold a video of {height} x {width} at {fps:g} frames/s")
        yield lambda frame: writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes one or more H W 3 frames of one size as .mp4, completely or not at all; creates a missing folder.

    In H.264 an odd side gets one more row or column, which repeats the last.

    Returns:
        The number of frames.

    Raises:
        ValueError: the path does not end in .mp4, frames differ in size, or the format cannot hold this rate or size.
        OSError: ``path`` cannot be written completely.
    """
    path, name = Path(path), encoder()
    if path.suffix != ".mp4":
        raise ValueError(f"{path}: expected a name that ends in .mp4")
    frames = iter(frames)
    first = next(frames)
    more = [(0, 0 if name == "OpenCV" else side % 2) for side in first.shape[:2]]
    height, width = (side + extra for side, (_, extra) in zip(first.shape[:2], more, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    try:
        with {"PyAV": _pyav, "ffmpeg": _ffmpeg, "OpenCV": _opencv}[name](temporary, fps, height, width) as write:
            for count, frame in enumerate(chain([first], frames), 1):
                if frame.shape != first.shape:
                    raise ValueError(f"{path}: frame {count} is {frame.shape}; expected {first.shape} as the first")
                write(np.pad(frame, (*more, (0, 0)), "edge"))
        # OpenCV and ffmpeg do not report every failed write, so the written file is read.
        written = cv2.VideoCapture(str(temporary), cv2.CAP_FFMPEG)
        properties = cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH
        found = tuple(int(written.get(name)) for name in properties)
        written.release()
        if found != (count, height, width):
            raise OSError(
                f"cannot write {path} (disk full, or an odd side and an OpenCV before 5?): expected {count} frames of "
                f"{height} x {width}, found {found[0]} of {found[1]} x {found[2]}; an earlier file is unchanged"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count
