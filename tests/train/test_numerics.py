"""Values that are not finite, mixed precision, compiled blocks, and two ranks against one."""

import math
from functools import partialmethod

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import train_kd
from datasets import build_dataset
from datasets.stream import TrainStream
from datasets.transforms import TrainTransform
from engine.trainer import Trainer
from tests.runs import assert_same, learnt, losses, metrics, refused, weights

TRANSFORM = {"crop_size": (32, 48), "scale_range": (0.8, 1.2), "photometric": True}  # as the experiments have it


def test_non_finite_loss_stops_before_the_weights_change(experiments, streets, tmp_path, monkeypatch):
    seen = {}

    def poison(self, *batch, forward=Trainer.forward):
        terms = forward(self, *batch)
        if self.step == 2:
            seen.update(student=self.student, before={k: p.clone() for k, p in self.student.named_parameters()})
            terms["logit"] = terms["logit"] * float("nan")
        return terms

    monkeypatch.setattr(Trainer, "forward", poison)
    message = refused([experiments["hmkd"], "--work-dir", tmp_path])
    assert "step 2: not finite: logit;" in message
    # Step 2 of batches of 4 holds the positions 8..11 of the stream.
    stream = TrainStream(build_dataset("camvid", streets, "train.txt"), TrainTransform((32, 48)), seed=0)
    names = ", ".join(stream.dataset.names[stream.index(position)] for position in range(8, 12))
    assert f"samples where it happened: {names} (rank 0);" in message
    assert_same(seen["before"], dict(seen["student"].named_parameters()))


def test_a_non_finite_gradient_stops_before_the_weights_change_and_is_kept(experiments, streets, tmp_path, monkeypatch):
    """The term has a value, 0, and the gradient 0 * inf; the third step's, of the positions 8..11 of the stream."""

    def poison(self, images, labels, large, positions, forward=Trainer.forward):
        terms = forward(self, images, labels, large, positions)
        if 9 in positions:
            terms["feature"] = terms["feature"] + (terms["logit"] - terms["logit"]).sqrt()
        return terms

    monkeypatch.setattr(Trainer, "forward", poison)
    options = ["--cfg-options", "train.accumulate=2"]
    message = refused([experiments["hmkd"], "--work-dir", tmp_path, *options])
    stream = TrainStream(build_dataset("camvid", streets, "train.txt"), TrainTransform(**TRANSFORM), seed=0)
    names = [stream.dataset.names[stream.index(position)] for position in (8, 9)]
    assert "step 2: not finite: the gradient of feature; " in message
    assert f"samples where it happened: {', '.join(names)} (rank 0); no optimizer step was taken" in message
    path = tmp_path / "crash" / "step_2_rank_0.pt"
    assert f"{path} holds the batch" in message
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    dump = torch.load(path, weights_only=True)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["step"] == 2
    assert_same(learnt(weights(path)), learnt(weights(tmp_path / "last.pt")))
    assert (dump["step"], dump["rank"], dump["precision"], dump["loss_scale"]) == (2, 0, "float32", 1.0)
    assert dump["weights"]["stage_logit"] == 0.5
    assert all(map(math.isfinite, dump["terms"].values()))
    bad, good = dump["micro_batches"]
    assert (bad["name"], bad["position"].tolist(), good["position"].tolist()) == (names, [8, 9], [10, 11])
    assert torch.equal(bad["image"], torch.stack([stream[position]["image"] for position in (8, 9)]))
    assert torch.equal(bad["label"], torch.stack([stream[position]["label"] for position in (8, 9)]))
    assert [name for name, norm in bad["gradient_norms"].items() if not math.isfinite(norm)] == ["feature"]
    assert all(map(math.isfinite, good["gradient_norms"].values()))
    assert good["gradient_norms"].keys() == dump["weights"].keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_accumulation_and_clipping(whole, experiments, tmp_path, precision):
    options = [f"train.precision={precision}", "train.accumulate=2", "train.grad_clip=1.0", "schedule.max_iters=3"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    first, reference = metrics(tmp_path)[0]["task"], metrics(whole)[0]["task"]
    assert first == pytest.approx(reference, rel=0.05)  # the same first batch ...
    assert first != reference  # ... computed otherwise
    assert len(losses(tmp_path)) == 3
    scaling = [(line["loss_scale"], line["skipped_steps"]) for line in metrics(tmp_path) if "loss_scale" in line]
    # Gradients of this network overflow at the scales 65536 and 32768.
    assert scaling == ([(32768.0, 1), (16384.0, 2), (16384.0, 2)] if precision == "fp16" else [])
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["skipped_steps"] == (2 if precision == "fp16" else 0)


def test_compiled_blocks_learn_what_eager_ones_do(experiments, whole, tmp_path, monkeypatch):
    """Files and names stay the same, and an eager run resumes from them. Traced, but not made into kernels: quicker."""
    compile_as_it_is = partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", compile_as_it_is)
    compiled, eager = tmp_path / "compiled", tmp_path / "eager"
    counters.clear()
    train_kd.main([experiments["hmkd"], "--work-dir", str(compiled), "--cfg-options", "train.compile=True"])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 4  # the student has four kinds of blocks
    assert losses(compiled) == pytest.approx(losses(whole), rel=1e-4)
    assert weights(compiled / "last.pt").keys() == weights(whole / "last.pt").keys()
    eager.mkdir()
    (eager / "step_5.pt").write_bytes((compiled / "step_5.pt").read_bytes())
    train_kd.main([experiments["hmkd"], "--work-dir", str(eager), "--resume"])
    assert counters["stats"]["unique_graphs"] == graphs
    assert losses(eager) == pytest.approx(losses(compiled)[5:], rel=1e-4)


def test_two_ranks_see_and_learn_what_one_with_accumulation_does(experiments, tmp_path, launch):
    """Same samples, same dropout, same normalisation over all valid pixels: the same losses, to rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    train_kd.main(
        [experiments["hmkd"], "--work-dir", str(one), "--cfg-options", "train.accumulate=2", "schedule.max_iters=3"]
    )
    done = launch(
        "train_kd.py", experiments["hmkd"], "--work-dir", two, "--cfg-options", "schedule.max_iters=3", processes=2
    )
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for one_line, two_line in zip(metrics(one)[:3], metrics(two)[:3], strict=True):
        for term in ("task", "feature", "anchor", "relation", "relation_anchor", "logit", "stage_logit"):
            assert two_line[term] == pytest.approx(one_line[term], rel=1e-4, abs=1e-7), term


def test_two_ranks_resume_where_they_stopped(experiments, tmp_path, launch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--cfg-options", "schedule.max_iters=4", "train.accumulate=1"]
    assert launch("train_kd.py", experiments["hmkd"], "--work-dir", whole, *options, processes=2).returncode == 0
    parts.mkdir()
    (parts / "step_2.pt").write_bytes((whole / "step_2.pt").read_bytes())
    done = launch("train_kd.py", experiments["hmkd"], "--work-dir", parts, "--resume", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(parts) == losses(whole)[2:]
    assert_same(weights(parts / "last.pt"), weights(whole / "last.pt"))
