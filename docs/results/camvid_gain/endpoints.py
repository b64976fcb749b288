"""The other figures of the study's finished runs: pixel accuracy, boundary IoU and negative log-likelihood.

python docs/results/camvid_gain/endpoints.py work_dirs/camvid_gain/b0_few docs/results/camvid_gain/b0_few_endpoints.json

reads each run's last checkpoint and evaluates it on the validation set as the run did, from the repository's root. The
negative log-likelihood is the mean over all labelled pixels of -log p(label), in nats, p at the size of the label.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from configs.schema import Experiment, autocast_dtype
from engine.boundary import BoundaryIoU
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.evaluation import evaluate
from models import read_weights
from utils.config import load_config
from utils.names import VOID


def endpoints(run: Path) -> dict[str, float]:
    config = load_config(str(run / "config.py"), Experiment)
    dataset = build_split(config, str(run / "config.py"), "val")
    model, _ = build_student(config, str(run / "config.py"), dataset.class_names, pretrained=False)
    load_trained(model, read_weights(str(run / "last.pt")), dataset.class_names)
    boundary, logits, nats, pixels = BoundaryIoU(dataset.num_classes), [], 0.0, 0

    def on_sample(_, image, prediction, label):
        nonlocal nats, pixels
        boundary.update(prediction, label)
        found = F.interpolate(logits.pop().float(), label.shape, mode="bilinear")
        nats += F.cross_entropy(found, label[None].long(), ignore_index=VOID, reduction="sum").item()
        pixels += (label != VOID).sum().item()

    model.register_forward_hook(lambda module, inputs, output: logits.append(output.logits))
    metrics = evaluate(
        model, dataset, device="cpu", autocast_dtype=autocast_dtype(config.eval_precision), on_sample=on_sample,
        **config.eval.protocol,
    )  # fmt: skip
    return {
        "miou": metrics.miou, "pixel_accuracy": metrics.pixel_accuracy,
        "boundary_miou": boundary.compute()["boundary_miou"], "nll": nats / pixels,
    }  # fmt: skip


def main(folder: str, file: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for checkpoint in sorted(Path(folder).glob("runs/*/seed_*/last.pt")):
        method, seed = checkpoint.parts[-3], checkpoint.parts[-2].removeprefix("seed_")
        found.setdefault(method, {})[seed] = endpoints(checkpoint.parent)
        print(method, seed, found[method][seed], flush=True)
        Path(file).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
