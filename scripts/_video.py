"""Reads and writes video files with OpenCV. Frames are H W 3 uint8 RGB arrays."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

CODEC = "mp4v"  # MPEG-4: OpenCV's wheels can write it into .mp4 on every system


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


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes one or more H W 3 frames of one size as .mp4, completely or not at all; creates a missing folder.

    Returns:
        The number of frames.

    Raises:
        ValueError: the path does not end in .mp4, or MPEG-4 cannot hold this frame rate or size.
        OSError: ``path`` cannot be written completely.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"{path}: expected a name that ends in .mp4")
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*CODEC), fps, (width, height))
    try:
        if not writer.isOpened():
            raise ValueError(f"{path} cannot be started as {CODEC} video of {height} x {width} at {fps:g} frames/s")
        count = 0
        for count, frame in enumerate(chain([first], frames), 1):  # noqa: B007 - counts
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        # OpenCV reports no failed write and drops frames of another size, so the written file is read.
        written = cv2.VideoCapture(str(temporary), cv2.CAP_FFMPEG)
        properties = cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH
        found = tuple(int(written.get(name)) for name in properties)
        written.release()
        if found != (count, height, width):
            raise OSError(
                f"cannot write {path} (disk full, frames of several sizes, or an odd side and an OpenCV before 5?): "
                f"expected {count} frames of {height} x {width}, found {found[0]} of {found[1]} x {found[2]}; an "
                f"earlier file is unchanged"
            )
        os.replace(temporary, path)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)
    return count
