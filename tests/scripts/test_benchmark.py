"""The benchmark's own honesty: what its clocks and recipes measure. Its figures are never asserted."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from configs.schema import Experiment
from scripts import benchmark
from scripts.benchmarks import published, step, timing
from scripts.benchmarks.published import PublishedStep, unscaled_attention
from utils.config import load_config
from utils.distributed import World

CPU = torch.device("cpu")


def test_alternatives_take_turns_and_the_warm_up_is_left_out(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def takes(name, *seconds):
        def run():
            calls.append(name)
            now[0] += seconds[calls.count(name) - 1]

        return run

    found = timing.time_each({"a": takes("a", 9, 1, 5, 3), "b": takes("b", 9, 2, 2, 2)}, CPU, rounds=3, warmup=1)
    assert "".join(calls) == "abababab"
    assert found["a"] == (3, 2, 4)  # of 1, 5, 3: median and the quartiles, halfway to its neighbours
    assert found["a"].spread == pytest.approx(1 / 3)
    assert found["b"] == (2, 2, 2)


def test_peak_memory_sees_what_is_freed_again():
    def run():
        torch.ones(2**24)  # 64 MiB

    assert timing.peak_memory(run, CPU) == pytest.approx(2**26, rel=0.1)


def test_attention_as_released_by_hand():
    x = torch.tensor([[[[1.0, 2.0]]]])  # one channel, two positions: X^T X is ((1, 2), (2, 4))
    first, second = (math.exp(a) / (math.exp(a) + math.exp(b)) for a, b in ((1, 2), (2, 4)))
    expected = torch.tensor([[[[first + 2 * (1 - first), second + 2 * (1 - second)]]]])
    torch.testing.assert_close(unscaled_attention(x), expected)


@pytest.fixture
def config(experiments):
    return load_config(experiments["hmkd"], Experiment)


def test_the_published_step_computes_what_its_description_says(config):
    ours = step.build(config, World(0, 1, CPU))
    data = step.random_batch(2, (64, 64), pinned=False)
    student, teacher = ours.student, ours.teacher
    with torch.no_grad():
        logits, knowledge = (F.interpolate(net(data["image"]).logits, (64, 64), mode="bilinear")
                             for net in (student.eval(), teacher))  # fmt: skip
    log_s, log_t = logits.log_softmax(1), knowledge.log_softmax(1)
    before = [parameter.clone() for parameter in student.parameters()]
    found = PublishedStep(student, teacher, config.optimizer.model_dump())(data["image"].float(), data["label"].long())
    valid = (data["label"] != 255).float()
    nll = -log_s.gather(1, data["label"].long().clamp(max=18)[:, None])[:, 0]
    assert found["task"] == pytest.approx(((nll * valid).sum() / valid.sum()).item(), rel=1e-4)
    assert found["kd"] == pytest.approx((log_t.exp() * (log_t - log_s)).sum(1).mean().item(), rel=1e-3)
    assert found["loss"] == pytest.approx(found["task"] + found["kd"] + found["feature"], rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_the_published_attention_can_be_left_out(config, monkeypatch):
    ours = step.build(config, World(0, 1, CPU))
    theirs = PublishedStep(ours.student, ours.teacher, config.optimizer.model_dump())
    assert theirs.context is not None
    data, calls = step.random_batch(2, (64, 64), pinned=False), []
    monkeypatch.setattr(published, "unscaled_attention", lambda x: calls.append(x) or unscaled_attention(x))
    for attention in (True, False):
        theirs(data["image"].float(), data["label"].long(), attention)
    assert len(calls) == 1


def test_a_row_for_every_part_and_method(experiments, tmp_path, capsys):
    methods = ["configs/_base_/methods/kd.py", "configs/_base_/methods/hmkd.py"]
    common = [
        "--config",
        str(experiments["hmkd"]),
        "--device",
        "cpu",
        "--size",
        "64",
        "64",
        "--rounds",
        "1",
        "--batch",
        "2",
    ]
    benchmark.main(["step", *common, "--json", str(tmp_path / "step.json")])
    (row,) = json.loads((tmp_path / "step.json").read_text())["step"]
    assert row["ratio"] == pytest.approx(row["published"] / row["ours"])
    assert f"{row['ratio_without_attention']:.2f}x without its attention" in row["note"]
    assert sum(row["parts"].values()) == pytest.approx(row["ours"])
    given = ["--methods", *methods, "--steps", "4", "--cfg-options", "student.width=8"]
    benchmark.main(["losses", *common, *given, "--json", str(tmp_path / "losses.json")])
    rows = json.loads((tmp_path / "losses.json").read_text())["losses"]
    assert [(row["method"], row["finite"], row["steps"]) for row in rows] == [(m, True, 4) for m in methods]
    assert "published / ours" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_are_timed_against_one(experiments, tmp_path):
    common = ["scaling", "--config", experiments["hmkd"], "--device", "cpu", "--size", "64", "64", "--rounds", "1"]
    benchmark.main([*common, "--batch", "2", "--json", str(tmp_path / "scaling.json")])
    one, weak, strong = json.loads((tmp_path / "scaling.json").read_text())["scaling"]
    assert one["efficiency"] == pytest.approx(1)
    assert weak["efficiency"] == pytest.approx(one["s"] / weak["s"])  # twice the images
    assert strong["efficiency"] == pytest.approx(one["s"] / (2 * strong["s"]))  # as many
    assert 0 < weak["all_reduce"] < 1
    with pytest.raises(SystemExit, match="--batch 3 cannot be divided among 2 processes"):
        benchmark.main([*common, "--batch", "3"])


def test_what_cannot_be_measured_is_said(experiments, capsys):
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.py"):
        benchmark.main(["step", "--config", "configs/nowhere.py"])
    with pytest.raises(SystemExit, match=r"error: .*alone\.py has no teacher"):
        benchmark.main(["losses", "--device", "cpu", "--config", experiments["alone"]])
    with pytest.raises(SystemExit):
        benchmark.main(["step", "--device", "abacus"])
    assert "--device: abacus is not usable here (--device cpu is): " in capsys.readouterr().err
