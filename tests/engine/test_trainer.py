import copy
import math

import pytest
import torch
from timm.layers import convert_sync_batchnorm

from engine.crash import NonFiniteError
from engine.teacher import Teacher
from engine.trainer import Trainer
from models import build_model
from utils.distributed import World


def test_synchronised_norms_compute_the_same_network():
    """timm fuses activations into norms; PyTorch's own conversion would silently drop them."""
    torch.manual_seed(0)
    model = build_model("tf_efficientnet_lite0", "deeplabv3", 3, output_stride=32, width=8).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = model(images).logits
        after = convert_sync_batchnorm(model)(images).logits
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) > 20
    assert torch.equal(before, after)


def narrow_convolution():
    return torch.nn.Conv2d(3, 8, 1, 2)


def test_on_a_cpu_trainer_and_teacher_keep_narrow_strided_convolutions_contiguous():
    """channels_last, their gradient ends the process (``models.placement``); their one stride tells the layout."""
    toy = Toy()
    toy.backbone.narrow = narrow_convolution()
    toy_trainer(toy=toy, channels_last=True)
    teacher = Teacher(narrow_convolution())
    teacher.prepare(World(0, 1, torch.device("cpu")), channels_last=True)
    assert toy.backbone.narrow.weight.stride() == teacher.network.weight.stride() == (3, 1, 1, 1)


class Toy(torch.nn.Module):
    """Stands for a distiller: one weight of four numbers, one term, whose gradient on them is the mean image."""

    weights, method = {"task": 1.0}, None

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.weight = torch.nn.Parameter(torch.ones(4))

    @property
    def student(self):
        return self

    def counts(self, labels):
        return {"task": torch.tensor(float(labels.ids.numel()))}

    def forward(self, images, labels, teacher):
        return {"task": (self.backbone.weight * images.mean(0)).sum()}


def optimizer(kind="sgd", **changed):
    settings = {"type": kind, "lr": 0.5, "head_lr_mult": 1.0, "weight_decay": 0.0, "decay_norm_bias": True}
    return settings | {"momentum": 0.5, "betas": (0.9, 0.999)} | changed


def toy_trainer(kind="sgd", dtype=None, toy=None, channels_last=False, ema=None, **changed):
    return Trainer(
        toy or Toy(),
        None,
        World(0, 1, torch.device("cpu")),
        optimizer=optimizer(kind, **changed),
        schedule={"max_iters": 100, "power": 0.0},
        autocast_dtype=dtype,
        channels_last=channels_last,
        grad_clip=None,
        curriculum={},
        seed=0,
        ema=ema,
    )


def batch(value):
    return {"image": torch.full((1, 4), value), "label": torch.zeros(1, 1, 1, dtype=torch.uint8), "name": ["one"]}


def optimizer_state(trainer):
    return {name: value.tolist() for name, value in trainer.optimizer.state[trainer.student.backbone.weight].items()}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing_even_when_it_is_known_late(kind, monkeypatch):
    """As on a GPU, where a step's outcome is read in the next one or before a checkpoint is made of it."""
    trainer = toy_trainer(kind)
    trainer.train_step([batch(1.0)])
    before = trainer.student.backbone.weight.tolist(), optimizer_state(trainer)
    for act in (lambda: trainer.train_step([batch(1.0)]), trainer.state):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "check", lambda self: None)
            # The term is finite, a sum of huge numbers of both signs; what it asks of the weight is not.
            trainer.student.backbone.weight.register_hook(lambda grad: grad * math.inf)
            trainer.train_step([batch(1.0)])
        with pytest.raises(NonFiniteError, match=r"step [12]: not finite: the gradient of task; .*: one \(rank 0\)"):
            act()
        assert (trainer.student.backbone.weight.tolist(), optimizer_state(trainer)) == before


def test_the_last_outcome_is_asked_for_after_the_next_backward_pass_is_queued(monkeypatch):
    """Else a GPU would be idle from the end of a step until the host has started the next one."""
    trainer, order = toy_trainer(), []
    monkeypatch.setattr(Trainer, "check", lambda self: order.append(f"check before step {self.step + 1} is done"))
    trainer.student.backbone.weight.register_hook(lambda grad: order.append("backward"))
    trainer.train_step([batch(1.0)])
    assert order[:2] == ["backward", "check before step 1 is done"]


def test_a_gradient_whose_squares_overflow_is_finite():
    trainer = toy_trainer()
    trainer.train_step([batch(1e30)])
    assert trainer.student.backbone.weight.tolist() == [pytest.approx(-0.5e30)] * 4


@pytest.fixture
def uninitialised_is_nan():
    """What nobody wrote to reads as nan, and not by chance as zero."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_float16_skips_counts_and_goes_on(uninitialised_is_nan):
    """65536 times 1 is more than float16's largest number 65504: the first step is skipped, half the scale fits.

    The weight learns in float32; the hook does what a float16 gradient would.
    """
    trainer = toy_trainer(dtype=torch.float16)
    trainer.student.backbone.weight.register_hook(lambda grad: grad.half().float())
    for _ in range(2):
        trainer.train_step([batch(1.0)])
    assert trainer.scaling() == {"loss_scale": 32768.0, "skipped_steps": 1}
    assert trainer.student.backbone.weight.tolist() == [0.5] * 4  # 1 - lr * (0.5 * 0 + 1)
    other = toy_trainer(dtype=torch.float16)
    other.restore(trainer.state(), optimizer())
    assert other.scaling() == trainer.scaling()
    assert toy_trainer().scaling() == {}


def test_float16_stops_when_no_loss_scale_helps():
    """From 2^16 the scale halves with each step; 2^-14 is the first below 1e-4, and the 31st step finds it so."""
    trainer = toy_trainer(dtype=torch.float16)
    trainer.student.backbone.weight.register_hook(lambda grad: grad * math.nan)
    for _ in range(30):
        trainer.train_step([batch(1.0)])
    assert trainer.scaling() == {"loss_scale": 2.0**-14, "skipped_steps": 30}
    with pytest.raises(NonFiniteError, match="step 30: not finite: the gradient of task") as stop:
        trainer.train_step([batch(1.0)])
    assert stop.value.dump["loss_scale"] == 2.0**-14
    assert stop.value.dump["precision"] == "float16"
    assert trainer.student.backbone.weight.tolist() == [1.0] * 4


def test_a_checkpoint_of_before_the_scaler_was_always_there_is_gone_on_from():
    trainer = toy_trainer()
    trainer.train_step([batch(1.0)])
    state = copy.deepcopy(trainer.state()) | {"scaler": {}}
    del state["skipped_steps"]
    other = toy_trainer()
    other.restore(state, optimizer())
    for each in (trainer, other):
        each.train_step([batch(1.0)])
    assert other.student.backbone.weight.tolist() == trainer.student.backbone.weight.tolist()


def test_a_resumed_sgd_has_the_momentum_the_rate_and_the_decay_of_the_config():
    """Two steps by hand, gradient 1: weight 1 - 0.5 * 1 = 0.5; then momentum 0.2 * 1 + 1 + 0.1 * 0.5 = 1.25."""
    trainer = toy_trainer()
    trainer.train_step([batch(1.0)])
    other = toy_trainer(lr=0.2, momentum=0.2, weight_decay=0.1)
    other.restore(trainer.state(), optimizer())
    other.train_step([batch(1.0)])
    assert other.learning_rate == 0.2
    assert other.student.backbone.weight.tolist() == pytest.approx([0.5 - 0.2 * 1.25] * 4)


def test_a_resumed_adam_has_the_betas_of_the_config():
    """The moments after one gradient of 1: 0.1 and 0.001. The next gradient is 1 too, with betas 0.5 and 0.9."""
    trainer = toy_trainer("adamw")
    trainer.train_step([batch(1.0)])
    other = toy_trainer("adamw", betas=(0.5, 0.9))
    other.restore(trainer.state(), optimizer("adamw"))
    other.train_step([batch(1.0)])
    found = optimizer_state(other)
    assert found["exp_avg"] == pytest.approx([0.5 * 0.1 + 0.5] * 4)
    assert found["exp_avg_sq"] == pytest.approx([0.9 * 0.001 + 0.1] * 4)


def test_momentum_that_a_resumed_run_adds_starts_from_zero():
    trainer = toy_trainer(momentum=0.0)
    trainer.train_step([batch(1.0)])
    other = toy_trainer(momentum=0.5)
    other.restore(trainer.state(), optimizer(momentum=0.0))
    assert optimizer_state(other) == {"momentum_buffer": [0.0] * 4}


@pytest.mark.parametrize(("before", "now"), [(torch.float16, None), (None, torch.float16)])
def test_a_run_resumed_in_another_precision_has_its_own_loss_scale(before, now):
    """Not float16's 65536 without float16, and not 1, which never grows, in float16."""
    trainer, other = toy_trainer(dtype=before), toy_trainer(dtype=now)
    fresh = other.scaler.get_scale()
    other.restore(trainer.state(), optimizer())
    assert other.scaler.get_scale() == fresh


def test_a_step_that_float16_skips_averages_unchanged_weights():
    """The first step is skipped: .1 * 1 + .9 * 1. The second has the decay 2/11: 2/11 * 1 + 9/11 * .5."""
    trainer = toy_trainer(dtype=torch.float16, ema=0.9)
    trainer.student.backbone.weight.register_hook(lambda grad: grad.half().float())
    trainer.train_step([batch(1.0)])
    assert trainer.ema.backbone.weight.tolist() == [1.0] * 4
    trainer.train_step([batch(1.0)])
    assert trainer.ema.backbone.weight.tolist() == pytest.approx([2 / 11 + 9 / 11 * 0.5] * 4)
    assert not trainer.ema.backbone.weight.requires_grad
