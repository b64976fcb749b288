import math

import pytest
import torch

from losses.labels import Labels
from losses.task import TaskLoss
from models.base import SegOutput
from tests.losses.networks import zero_labels


def output(logits, aux=None):
    return SegOutput(logits, {}, aux)


def test_task_and_aux_by_hand():
    logits = torch.zeros(1, 4, 2, 2)
    aux = torch.zeros(1, 4, 1, 1)
    aux[0, 0] = math.log(5)  # p = (5/8, 1/8, 1/8, 1/8) everywhere
    labels = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
    task = TaskLoss(aux_weight=0.4)
    terms = task(output(logits, aux), Labels(labels))
    assert task.weights == {"task": 1.0, "aux": 0.4}
    torch.testing.assert_close(terms["task"].item(), math.log(4))
    torch.testing.assert_close(terms["aux"].item(), (2 * math.log(8 / 5) + math.log(8)) / 3)
    assert {name: count.item() for name, count in task.counts(Labels(labels)).items()} == {"task": 3, "aux": 3}


def test_without_weight_there_is_no_aux_term():
    task = TaskLoss()
    assert set(task(output(torch.zeros(1, 2, 2, 2)), zero_labels(1, 2, 2))) == set(task.weights) == {"task"}


def test_missing_aux_logits_and_negative_weights_are_refused():
    with pytest.raises(ValueError, match="no auxiliary logits"):
        TaskLoss(aux_weight=0.4)(output(torch.zeros(1, 2, 2, 2)), zero_labels(1, 2, 2))
    with pytest.raises(ValueError, match="negative"):
        TaskLoss(aux_weight=-0.1)
    with pytest.raises(ValueError, match="negative"):
        TaskLoss(class_weights=[1.0, -1.0])


def logits_of(probabilities):
    """Two classes, of which the first has these probabilities: 1 2 1 N logits."""
    p = torch.tensor(probabilities)
    return torch.stack([p, 1 - p]).log()[None, :, None]


@pytest.mark.parametrize(
    ("ohem", "kept"),
    [
        ((0.75, 0.01), [0.1, 0.6, 0.7]),  # all of at most .75
        ((0.2, 0.5), [0.1, 0.6]),  # the harder half of the four valid ones
        ((0.05, 0.01), [0.1]),  # never none
        ((0.05, 1.0), [0.1, 0.6, 0.7, 0.9]),
    ],
)
def test_hard_pixels_by_hand(ohem, kept):
    """Probabilities of the true class .9 .1 .7 .6, and one void pixel that is the hardest of all."""
    logits, labels = logits_of([0.9, 0.1, 0.7, 0.6, 1e-6]), torch.tensor([[[0, 0, 0, 0, 255]]], dtype=torch.uint8)
    loss = TaskLoss(ohem=ohem)(output(logits), Labels(labels))["task"]
    torch.testing.assert_close(loss.item(), -sum(map(math.log, kept)) / len(kept), rtol=1e-5, atol=1e-5)


def test_hard_pixels_are_mined_image_by_image_and_weighted_by_class():
    """Of each image the harder half: .5 of class 0 (weight 1) and .2 of class 1 (weight 3) among four pixels each."""
    logits = torch.cat([logits_of([0.5, 0.9]), logits_of([0.9, 0.8])])
    labels = torch.tensor([[[0, 0]], [[0, 1]]], dtype=torch.uint8)
    loss = TaskLoss(class_weights=[1.0, 3.0], ohem=(0.01, 0.5))(output(logits), Labels(labels))["task"]
    torch.testing.assert_close(loss.item(), (2 * -math.log(0.5) + 4 * -math.log(0.2)) / 6)


@pytest.mark.parametrize("ohem", [(0.0, 0.5), (1.0, 0.5), (0.7, 0.0), (0.7, 1.5)])
def test_senseless_mining_is_refused(ohem):
    with pytest.raises(ValueError, match="expected a threshold in"):
        TaskLoss(ohem=ohem)


@pytest.mark.parametrize("ohem", [None, (0.3, 0.25)])
@pytest.mark.parametrize("class_weights", [None, [0.2, 1.0, 3.0]])
def test_counts_make_split_batches_equal_the_whole_one(class_weights, ohem):
    torch.manual_seed(0)
    task = TaskLoss(aux_weight=0.4, class_weights=class_weights, ohem=ohem)
    logits, aux, labels = (
        torch.randn(4, 3, 5, 7),
        torch.randn(4, 3, 3, 4),
        torch.randint(3, (4, 9, 13), dtype=torch.uint8),
    )
    labels[0], labels[1, :4], labels[2, 1] = 255, 255, 255  # one image all void, the others differ
    whole, counts = task(output(logits, aux), Labels(labels)), task.counts(Labels(labels))
    for name in task.weights:
        pieces = 0.0
        for i in range(4):
            part = slice(i, i + 1)
            term = task(output(logits[part], aux[part]), Labels(labels[part]))[name]
            pieces += term * task.counts(Labels(labels[part]))[name] / counts[name]
        torch.testing.assert_close(pieces, whole[name])


def test_all_void_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    for weights, ohem in ((None, None), ([1.0, 2.0, 3.0], None), (None, (0.7, 0.1))):
        labels = Labels(torch.tensor([[[255, 254]]], dtype=torch.uint8))
        loss = TaskLoss(class_weights=weights, ohem=ohem)(output(logits), labels)["task"]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0.0
        assert (gradient == 0).all()
