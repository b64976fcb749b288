"""Writes down how the files of a revision look: keys, shapes and metadata, no weights. One JSON file a run.

Run it in the root of a checkout of that revision, whose commands it calls:

    git worktree add ../revision 70d33d3 && cd ../revision && python ../hmkd/tests/compatibility/make.py
"""

import json
import platform
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
BASE = """
data = dict(type="camvid", root="data", crop_size=(32, 48), workers=0)
schedule = dict(max_iters=3)
train = dict(batch_size=4, precision="fp32", verify_teacher=False)
eval = dict(interval=1)
checkpoint = dict(interval=1, keep=3)
log = dict(interval=1, panel_images=0)
"""
SGD = 'optimizer = dict(type="sgd", lr=0.01)\n'
ADAMW = 'optimizer = dict(type="adamw", lr=0.001, decay_norm_bias=False)\n'
RESNET18 = 'student = dict(backbone="resnet18", head="deeplabv3", output_stride=16, width=8, aux=True)\n'
MIT_B0 = 'student = dict(backbone="mit_b0", head="segformer", width=16, drop_path=0.1)\n'
SMALL = 'student = dict(backbone="test_resnet", head="deeplabv3", output_stride=16, width=8)\n'
TEACHER = """
teacher = dict(
    backbone="resnet18", head="deeplabv3", output_stride=16, width=8, weights="resnet18_alone/student.safetensors"
)
"""
HMKD = 'distill = dict(type="hmkd", feature=1.0, logit=1.0)\n'
RELATION = 'distill = dict(type="hmkd", feature=1.0, logit=1.0, relation=10.0, stage_logit=1.0)\n'
CIRKD = 'distill = dict(type="cirkd", pixel_queue=40, region_queue=20, pixel_keys=22, region_keys=11)\n'
RUNS = {
    "resnet18_alone": BASE + SGD + RESNET18,
    "mit_b0_hmkd": BASE + ADAMW + MIT_B0 + TEACHER + HMKD,
    "small_hmkd_relation": BASE + ADAMW + SMALL + TEACHER + RELATION,
    "small_cirkd": BASE + SGD + SMALL + TEACHER + CIRKD,
}


def describe(value: Any) -> Any:
    """What a file holds, as JSON: of a tensor its type and shape, all else as it is."""
    if isinstance(value, torch.Tensor):
        return {"<tensor>": [str(value.dtype).removeprefix("torch."), *value.shape]}
    if isinstance(value, tuple):
        return {"<tuple>": [describe(entry) for entry in value]}
    if isinstance(value, list):
        return [describe(entry) for entry in value]
    if isinstance(value, dict) and any(not isinstance(key, str) for key in value):
        return {"<items>": [[key, describe(entry)] for key, entry in value.items()]}
    return {key: describe(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def rebuild(value: Any, name: str = "") -> Any:
    """The value that ``describe`` was given, with random tensors: the same ones for the same name, all small."""
    if isinstance(value, list):
        return [rebuild(entry, name) for entry in value]
    if not isinstance(value, dict):
        return value
    if "<tensor>" in value:
        dtype, *shape = value["<tensor>"]
        random = torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        return (random / 100).to(getattr(torch, dtype))
    if "<tuple>" in value:
        return tuple(rebuild(entry, name) for entry in value["<tuple>"])
    return {key: rebuild(entry, str(key)) for key, entry in value.get("<items>", value.items())}


def main() -> None:
    checkout = Path.cwd()

    def call(script: str, *arguments: str) -> None:
        subprocess.run([sys.executable, checkout / script, *arguments], cwd=folder, check=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call("scripts/make_synthetic.py", *["--out", "data", "--train", "8", "--val", "2", "--size", "48", "64"])
        for run, config in RUNS.items():
            (folder / f"{run}.py").write_text(config)
            call("train_kd.py", f"{run}.py", "--work-dir", run)
            with safe_open(folder / run / "student.safetensors", "pt") as file:
                student = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
                metadata = file.metadata()
            files = {
                "config.py": (folder / run / "config.py").read_text(),
                "student.safetensors": {"metadata": metadata, "tensors": describe(student)},
                "step_2.pt": describe(torch.load(folder / run / "step_2.pt", weights_only=True)),
            }
            text = json.dumps(files, separators=(",", ":")).replace(platform.platform(), platform.system())
            (HERE / f"{run}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
