"""The average of the student's weights: beside the training, in its files, and the same on every rank."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing import spawn

import train_kd
from configs.schema import Experiment
from engine.data import build_split
from engine.evaluation import evaluate
from engine.trainer import Trainer
from losses.distiller import Distiller
from losses.task import TaskLoss
from models import build_model, load_student
from tests.runs import PowerCutError, assert_same, losses, metrics, refused, weights
from utils.config import load_config
from utils.distributed import World

OPTIONS = ["train.ema=0.5", "log.panel_images=0", "eval.interval=2"]


@pytest.fixture(scope="module")
def averaged(experiments, tmp_path_factory):
    """An uninterrupted run of six steps with an average."""
    folder = tmp_path_factory.mktemp("runs") / "averaged"
    train_kd.main([experiments["hmkd"], "--work-dir", str(folder), "--cfg-options", *OPTIONS])
    return folder


def with_fixed_miou(student, averaged):
    """``Run.evaluate`` that finds these values."""
    original = train_kd.Run.evaluate

    def measure(self, model, description):
        return replace(original(self, model, description), miou=averaged if "averaged" in description else student)

    return measure


def saved(path, part="ema"):
    return torch.load(path, weights_only=True)[part]


def test_the_training_does_not_change(whole, averaged):
    assert losses(averaged) == losses(whole)
    assert_same(weights(averaged / "last.pt"), weights(whole / "last.pt"))
    assert "ema" not in torch.load(whole / "last.pt", weights_only=True)


def test_each_step_moves_the_average_by_the_decay_of_the_formula(averaged):
    """Steps 4 and 5 (from 0) have the decays 5/14 and min(0.5, 6/15)."""
    average = saved(averaged / "step_4.pt")
    for step, decay in ((5, 5 / 14), (6, 6 / 15)):
        student = saved(averaged / f"step_{step}.pt", "student")
        for name, value in student.items():
            mean = decay * average[name] + (1 - decay) * value
            average[name] = mean if value.is_floating_point() else value
        torch.testing.assert_close(saved(averaged / f"step_{step}.pt"), average)


def test_a_resumed_run_has_the_same_average(averaged, experiments, tmp_path, monkeypatch):
    arguments = [experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *OPTIONS]
    original = Trainer.train_step

    def cut(self, *args, **kwargs):
        if self.step == 5:
            raise PowerCutError
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", cut)
        with pytest.raises(PowerCutError):
            train_kd.main(arguments)
    train_kd.main([*arguments, "--resume", "auto"])
    assert metrics(tmp_path) == metrics(averaged)
    assert_same(saved(tmp_path / "last.pt"), saved(averaged / "last.pt"))


@pytest.mark.parametrize(
    ("average_is_better", "name"), [(True, "trained network (averaged weights)"), (False, "trained network")]
)
def test_the_better_of_the_two_is_the_best_and_is_exported(
    experiments, tmp_path, monkeypatch, capsys, average_is_better, name
):
    averaged_miou = 0.6 if average_is_better else 0.4
    monkeypatch.setattr(train_kd.Run, "evaluate", with_fixed_miou(0.5, averaged_miou))
    options = [*OPTIONS, "schedule.max_iters=3", "eval.interval=3"]
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    last, best = (torch.load(tmp_path / f"{file}.pt", weights_only=True) for file in ("last", "best"))
    assert_same(best["student"], last["ema" if average_is_better else "student"])
    assert_same(load_file(tmp_path / "student.safetensors"), best["student"])
    expected = {"step": 3, "miou": 0.6, "averaged": True} if average_is_better else {"step": 3, "miou": 0.5}
    assert best["best"] == expected
    for file in ("best.pt", "student.safetensors"):
        network, about = load_student(tmp_path / file)
        assert_same(network.state_dict(), best["student"])
        assert about.get("averaged", False) == average_is_better
    assert f"holds the best {name}\n" in capsys.readouterr().out
    line = next(line for line in metrics(tmp_path) if "miou" in line)
    assert (line["miou"], line["averaged_miou"]) == (0.5, averaged_miou)

    # best.pt is also a checkpoint: where it is the only one that is left, the run resumes with the trained weights.
    train_kd.main([experiments["hmkd"], "--work-dir", str(tmp_path / "new"), "--resume", str(tmp_path / "best.pt"),
                   "--cfg-options", *options])  # fmt: skip
    again = torch.load(tmp_path / "new" / "last.pt", weights_only=True)
    assert_same(again["student"], last["student"])
    assert_same(again["ema"], last["ema"])


def test_an_average_that_a_resumed_run_adds_begins_with_its_student(whole, experiments, tmp_path):
    arguments = [experiments["hmkd"], "--work-dir", tmp_path, "--resume", whole / "step_5.pt"]
    options = ["--cfg-options", "train.ema=0.0"]
    assert "train.ema: None -> 0.0" in refused([*arguments, *options])
    train_kd.main([str(argument) for argument in [*arguments, "--force", *options]])
    assert_same(saved(tmp_path / "last.pt"), saved(whole / "last.pt", "student"))  # with decay 0: the weights


def rank_of_two(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=3)
    )
    torch.manual_seed(0)
    student = build_model("test_resnet", "deeplabv3", 3, output_stride=16, width=8)
    optimizer = {"type": "sgd", "lr": 0.1, "head_lr_mult": 1.0, "weight_decay": 0.0, "decay_norm_bias": True}
    trainer = Trainer(
        Distiller(student, TaskLoss()), None, World(rank, 2, torch.device("cpu")),
        optimizer=optimizer | {"momentum": 0.9, "betas": (0.9, 0.999)},
        schedule={"max_iters": 10, "power": 1.0},
        autocast_dtype=None, channels_last=True, grad_clip=None, curriculum={}, seed=0, ema=0.9,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8, generator=generator)
        trainer.train_step([{"image": images, "label": labels, "name": ["a", "b"]}])
    for network, same in ((trainer.ema, True), (trainer.student, False)):
        values = torch.cat([value.flatten().double() for value in network.state_dict().values()])
        both = [torch.empty_like(values) for _ in range(2)]
        dist.all_gather(both, values)
        assert torch.equal(*both) == same
    dist.destroy_process_group()


def test_every_rank_has_the_same_average_although_running_statistics_differ(tmp_path):
    spawn(rank_of_two, (str(tmp_path / "store"),), nprocs=2)


def test_an_averaged_best_student_is_measured_again_under_another_protocol(experiments, tmp_path, monkeypatch, capsys):
    """As any best student; best.pt keeps both networks."""
    with monkeypatch.context() as patch:
        patch.setattr(train_kd.Run, "evaluate", with_fixed_miou(0.5, 0.6))
        options = [*OPTIONS, "schedule.max_iters=2"]
        train_kd.main([experiments["alone"], "--work-dir", str(tmp_path), "--cfg-options", *options])
    before = torch.load(tmp_path / "best.pt", weights_only=True)
    options.append("eval.scales=(1.5,)")
    train_kd.main([experiments["alone"], "--work-dir", str(tmp_path), "--resume", "--cfg-options", *options])
    after = torch.load(tmp_path / "best.pt", weights_only=True)
    assert_same(after["student"], before["student"])
    assert_same(after["trained"], before["trained"])
    config = load_config(experiments["alone"], Experiment, options)
    student, _ = load_student(tmp_path / "best.pt")
    measured = evaluate(student, build_split(config, "", "val"), device="cpu", **config.eval.protocol).miou
    assert after["best"] == {"step": 2, "miou": measured, "averaged": True}
    assert "holds the best trained network (averaged weights)" in capsys.readouterr().out
