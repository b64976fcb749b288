import pytest
import torch
from torch import nn

from losses.base import Method
from losses.distiller import Distiller
from losses.hmkd import HMKD
from losses.labels import Labels
from losses.task import TaskLoss
from models.base import SegModel, Tap
from tests.losses.networks import zero_labels


class Backbone(nn.Module):
    """Four 1x1 convolutions of stride 2."""

    family = "cnn"

    def __init__(self, width):
        super().__init__()
        self.tap_info = {f"stage{i}": Tap(width, 2**i) for i in (1, 2, 3, 4)}
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 1, stride=2) for i in range(4))

    def forward(self, x):
        stages = {}
        for i, conv in enumerate(self.convs, start=1):
            stages[f"stage{i}"] = x = conv(x)
        return stages


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.tap = Tap(width, 2)
        self.conv = nn.Conv2d(width, 3, 1)

    def forward(self, stages):
        return self.conv(stages["stage1"]), stages["stage1"]


def network(width, aux=False):
    return SegModel(Backbone(width), Head(width), 3, aux_head=nn.Conv2d(width, 3, 1) if aux else None)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8), Labels(
        torch.randint(3, (2, 16, 24), dtype=torch.uint8)
    )


def test_terms_weights_and_counts_agree_and_train_every_parameter(batch):
    images, labels = batch
    student, teacher = network(4, aux=True), network(6).eval().requires_grad_(False)
    distiller = Distiller(student, TaskLoss(aux_weight=0.4), HMKD(student.spec, teacher.spec, feature=0.5))
    assert distiller.weights == {"task": 1.0, "aux": 0.4, "feature": 0.5, "anchor": 1.0, "logit": 1.0}
    terms = distiller(images, labels, teacher(images))
    assert list(terms) == list(distiller.weights)
    assert terms.keys() == distiller.counts(labels).keys()
    sum(weight * terms[name] for name, weight in distiller.weights.items()).backward()
    unused = {name for name, parameter in distiller.named_parameters() if parameter.grad is None}
    assert unused == {f"student.backbone.convs.3.{part}" for part in ("weight", "bias")}  # stage4 feeds no term here
    assert not any("teacher" in name and "refine" not in name for name in distiller.state_dict())


def test_without_a_method_the_student_trains_alone(batch):
    distiller = Distiller(network(4), TaskLoss())
    assert distiller.weights == {"task": 1.0}
    assert set(distiller(*batch)) == set(distiller.counts(batch[1])) == {"task"}


def test_method_and_teacher_go_together(batch):
    student = network(4)
    with pytest.raises(ValueError, match="no teacher output was given, and the method is HMKD"):
        Distiller(student, TaskLoss(), HMKD(student.spec, student.spec))(*batch)
    with pytest.raises(ValueError, match="a teacher output was given, and the method is None"):
        Distiller(student, TaskLoss())(*batch, student(batch[0]))


def test_aux_head_and_aux_weight_go_together():
    with pytest.raises(ValueError, match="has an auxiliary head but the auxiliary weight is 0.0"):
        Distiller(network(4, aux=True), TaskLoss())
    with pytest.raises(ValueError, match="has no auxiliary head but the auxiliary weight is 0.4"):
        Distiller(network(4), TaskLoss(aux_weight=0.4))


def test_a_method_may_not_reuse_a_task_terms_name():
    method = Method()
    method.weights = {"task": 1.0}
    with pytest.raises(ValueError, match=r"both have a term named \['task'\]"):
        Distiller(network(4), TaskLoss(), method)


def test_default_counts_are_the_batch_size():
    method = Method()
    method.weights = {"a": 1.0, "b": 0.5}
    counts = method.counts(zero_labels(5, 2, 2))
    assert {name: count.item() for name, count in counts.items()} == {"a": 5, "b": 5}
    assert counts["a"].dtype == torch.float32
