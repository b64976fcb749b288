"""The gate: is the student, trained alone, limited by its labels? Few labels against all, at growing budgets.

python docs/results/camvid_gain/gate.py           from the repository's root, with data/camvid (its lists: train.txt,
val.txt). One run at a time, on one thread; the same command resumes. A result for each run: gate/*.json.
"""

import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT, DATA = HERE.parents[2], Path("data/camvid")
FEW = {"train_8th": 8, "train_32nd": 32}  # every 8th and every 32nd line of train.txt
# (network, labels, iterations, seeds), the most telling first.
RUNS = (
    ("b0", ("train_8th", "train"), 4000, (0, 1, 2)),
    ("b0", ("train_8th", "train"), 800, (0, 1, 2)),
    ("r18", ("train_8th", "train"), 4000, (0, 1, 2)),
    ("b0", ("train_8th", "train"), 12000, (0, 1, 2)),
    ("b0", ("train_32nd",), 4000, (0, 1, 2)),
    ("b0", ("train_32nd",), 800, (0, 1, 2)),
    ("r18", ("train_8th", "train"), 800, (0, 1, 2)),
    ("r18", ("train_8th", "train"), 12000, (0, 1, 2)),
    ("r18", ("train_32nd",), 4000, (0, 1, 2)),
    ("r18", ("train_32nd",), 800, (0, 1, 2)),
    ("b0", ("train_32nd",), 12000, (0, 1, 2)),
    ("r18", ("train_32nd",), 12000, (0, 1, 2)),
)


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def prepare(labels: str) -> str:
    """Writes the list and packs it, once; the folder of the packed data."""
    lines = (ROOT / DATA / "train.txt").read_text().splitlines(keepends=True)
    (ROOT / DATA / f"{labels}.txt").write_text("".join(lines[:: FEW.get(labels, 1)]))
    packed = f"data/camvid_packed_{labels}"
    if not (ROOT / packed / "val/index.json").is_file():
        call("scripts/pack_dataset.py", str(HERE / "b0_alone.py"), "--out", packed,
             "--cfg-options", f"data.train_list={labels}.txt")  # fmt: skip
    return packed


def main() -> None:
    for network, lists, iterations, seeds in RUNS:
        for seed, labels in product(seeds, lists):
            name = f"{network}_{labels}_{iterations}_seed{seed}"
            result, work_dir = HERE / "gate" / f"{name}.json", Path("work_dirs/gate") / name
            if result.is_file():
                continue
            every, start = max(400, iterations // 6), time.perf_counter()
            call("train_kd.py", str(HERE / f"{network}_alone.py"), "--work-dir", str(work_dir), "--resume", "auto",
                 "--cfg-options", f"data.train_list={labels}.txt", f"data.packed={prepare(labels)}",
                 f"schedule.max_iters={iterations}", f"train.seed={seed}", f"eval.interval={every}",
                 f"checkpoint.interval={every}")  # fmt: skip
            lines = [json.loads(line) for line in (ROOT / work_dir / "metrics.jsonl").read_text().splitlines()]
            found = {"network": network, "list": labels, "iters": iterations, "seed": seed,
                     "wall_seconds": round(time.perf_counter() - start),
                     "log": [line for line in lines if "miou" in line][-1],
                     "curve": [[line["step"], line["miou"]] for line in lines if "miou" in line]}  # fmt: skip
            result.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
