"""docs/your_data.md leads from five folders to trained and exported students: its commands are run as they stand."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_kd
from models import load_student
from scripts import export, predict, prepare_data
from tests.scripts.preparation.folders import save, street

PAGE = (Path(__file__).parents[1] / "docs/your_data.md").read_text()
SCRIPTS = {
    "scripts/prepare_data.py": prepare_data.main, "train_kd.py": train_kd.main,
    "scripts/export.py": export.main,
}  # fmt: skip
# Two steps of a small batch instead of hundreds, and no demand that the teacher is better than chance after them.
TINY = """
--cfg-options schedule.max_iters=2 schedule.warmup_iters=0 eval.interval=2 checkpoint.interval=2 log.interval=1
train.batch_size=2 train.precision=fp32 train.verify_teacher=False data.workers=0
"""
FRAMES = [f"{video}_{frame:03d}" for video in "abc" for frame in (1, 2, 3)]
PAINT = {"grass": (0, 255, 0), "road": (128, 64, 128)}


def grey(root):
    for seed, name in enumerate(FRAMES):
        save(root / f"masks/{name}.png", street(root / f"images/{name}.jpg", seed).astype(np.uint8))


def colors(root):
    for seed, name in enumerate(FRAMES):
        road = street(root / f"img/{name}.png", seed)
        mask = np.where(road[..., None], PAINT["road"], PAINT["grass"]).astype(np.uint8)
        mask[0] = 0
        save(root / f"ann/{name}_L.png", mask)
    lines = [" ".join(map(str, color)) + f"\t{name}\n" for name, color in PAINT.items()]
    (root / "colors.txt").write_text("".join(lines) + "0 0 0 Void\n")


def coco(root):
    document = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "road"}]}
    for seed, name in enumerate(FRAMES):
        left, *_, right = np.flatnonzero(street(root / f"images/{name}.jpg", seed)[0]).tolist()
        box = [left, 0, right + 1, 0, right + 1, 48, left, 48]
        document["images"].append({"id": seed, "file_name": f"{name}.jpg"})
        document["annotations"].append({"id": seed, "image_id": seed, "category_id": 3, "segmentation": [box]})
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text(json.dumps(document))


def split(root):
    for seed in range(6):
        side = "val" if seed % 3 == 0 else "train"
        road = street(root / f"{side}/images/{seed}.jpg", seed)
        save(root / f"{side}/labels/{seed}.png", road.astype(np.uint8))


def photos(root):
    for seed, name in enumerate(FRAMES):
        road = street(root / f"images/{name}.jpg", seed)
        if name[0] != "c":
            save(root / f"masks/{name}.png", road.astype(np.uint8))


def follow(name):
    """Runs all commands of the page that are about the folder data/mine_NAME."""
    commands = [line.strip() for line in PAGE.splitlines() if line.startswith("    python") and f"/mine_{name}" in line]
    for command in commands:
        _, script, *arguments = shlex.split(command)
        tiny = shlex.split(TINY) if script == "train_kd.py" else []
        assert not SCRIPTS[script]([*arguments, *tiny]), command
    return [shlex.split(command)[1] for command in commands]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "classes"),
    [
        (grey, ["grass", "road"]),
        (colors, ["grass", "road"]),
        (coco, ["background", "road"]),
        (split, ["grass", "road"]),
        (photos, ["grass", "road"]),
    ],
)
def test_the_page_leads_from_a_folder_to_an_exported_student(data, make, classes):
    root = data / f"mine_{make.__name__}"
    root.mkdir(parents=True)
    make(root)
    assert follow(make.__name__)[-3:] == ["train_kd.py", "train_kd.py", "scripts/export.py"]
    run = data.parent / f"work_dirs/{root.name}/hmkd"
    assert list(load_student(run / "student.safetensors")[1]["class_names"]) == classes
    photo = data.parent / "photo.png"
    street(photo, 99)
    predict.main([str(run / "student.onnx"), str(photo), "--out", "overlays", "--save-pred"])
    found = np.array(Image.open("overlays/photo_classes.png"))
    assert found.shape == (48, 64)
    assert found.max() < len(classes)


def test_the_masks_of_polygons_are_the_roads(data):
    root = data / "mine_coco"
    root.mkdir(parents=True)
    coco(root)
    assert prepare_data.main([str(root), "--to-masks"]) == 0
    for seed, name in enumerate(FRAMES):
        mask = np.array(Image.open(root / f"masks/{name}.png"))
        assert (mask == street(data / "again.png", seed)).all()


def test_images_without_a_mask_are_listed_apart(data):
    root = data / "mine_photos"
    photos(root)
    assert prepare_data.main([str(root), "--unlabelled", "images/*.jpg"]) == 0
    listed = {path.stem: path.read_text().split("\n") for path in root.glob("*.txt")}
    assert listed.pop("mine_photos_unlabelled") == [f"images/c_00{n}.jpg" for n in (1, 2, 3)] + [""]
    assert not re.search("images/c_", str(listed))
    assert {name: len(lines) - 1 for name, lines in listed.items()} == {"mine_photos_train": 3, "mine_photos_val": 3}
