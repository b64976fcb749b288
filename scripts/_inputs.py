"""The images and videos that a script reads, and the files that it writes for them."""

import os
from pathlib import Path
from typing import NamedTuple

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
    """All files below a folder except hidden ones, relative to it, sorted.

    Links are followed, except a link to a folder that contains it, which would never end.
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
    """Every image and video of ``inputs``, those of a folder sorted by name, without hidden files.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a folder contains neither images nor videos, or contains ``out``.
    """
    jobs = []
    for path in inputs:
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"--out {out} is inside the input folder {path}: overlays would become inputs")
            names = [name for name in files_below(path) if name.suffix.lower() in IMAGES + VIDEOS]
            if not names:
                raise ValueError(f"{path} contains no image and no video; expected {', '.join(IMAGES + VIDEOS)}")
            jobs += [Job(path / name, out / name.parent / name.stem) for name in names]
        elif path.is_file():
            jobs.append(Job(path, out / path.stem))
        else:
            raise FileNotFoundError(f"input {path} does not exist; expected an image, a video or a folder of them")
    return jobs


def check_outputs(jobs: list[Job], legend: Path, save_pred: bool) -> None:
    """Raises ValueError where two outputs would have the same path, or an input would be overwritten."""
    sources = {job.source.resolve() for job in jobs}
    owners: dict[Path, str | Path] = {legend: "the legend"}
    for job in jobs:
        for path in [job.overlay, job.classes] if save_pred else [job.overlay]:
            if path in owners:
                raise ValueError(
                    f"{owners[path]} and {job.source} would both be written to {path}: rename one, or use two calls "
                    f"with different --out"
                )
            owners[path] = job.source
    for path, owner in owners.items():
        if path.resolve() in sources:
            raise ValueError(f"{path}, the output of {owner}, is an input: choose another --out")
