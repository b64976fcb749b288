"""The fixed frame of the teacher's features, and the alignment in it."""

import copy

import pytest
import torch

from losses import build_method
from losses.frame import FrameAlignment, Moments
from losses.labels import Labels
from models.base import Tap
from tests.losses.networks import LARGE, SMALL, random_labels, random_output, zero_labels
from utils.names import OUTSIDE, VOID


def measured(align, *maps):
    moments = Moments()
    for teacher, labels in maps:
        moments = align.measure(teacher, labels, moments)
    align.fix(moments)
    return align


def features(B=4, C=12, h=9, w=11):
    """Features of unequal variances away from 0, as a network's are."""
    return 3 + torch.randn(B, C, h, w) * torch.logspace(1, -1, C)[:, None, None]


def targets(align, teacher):
    return torch.einsum("kc,bchw->bkhw", align.axes, teacher - align.mean[:, None, None])


def test_the_frame_of_two_channels_by_hand():
    """Channels with variances 16 and 1: the target has c 16^(1/4) = 2c and c times unit variance; 4c^2 + c^2 = 2."""
    teacher = torch.tensor([[9.0, 9.0, 1.0, 1.0], [3.0, 1.0, 3.0, 1.0]]).view(1, 2, 2, 2)  # means 5 and 2
    align = measured(FrameAlignment(Tap(1, 1), Tap(2, 1)), (teacher, zero_labels(1, 2, 2)))
    torch.testing.assert_close(align.mean, torch.tensor([5.0, 2.0]))
    c = 0.4**0.5
    expected = c * torch.tensor([[2.0, 2.0, -2.0, -2.0], [1.0, -1.0, 1.0, -1.0]]).view(1, 2, 2, 2)
    torch.testing.assert_close(targets(align, teacher), expected)
    with torch.no_grad():
        align.project.weight.zero_()
        align.project.bias.zero_()
    loss, anchor = align(torch.zeros(1, 1, 2, 2), teacher, zero_labels(1, 2, 2))
    torch.testing.assert_close(loss.item(), 1.0)
    assert anchor is None


def test_components_are_uncorrelated_with_mean_variance_one():
    torch.manual_seed(0)
    teacher = torch.einsum("cd,bdhw->bchw", torch.randn(12, 12), features())
    align = measured(FrameAlignment(Tap(3, 1), Tap(12, 1), components=5), (teacher, zero_labels(4, 9, 11)))
    covariance = targets(align, teacher).movedim(1, 0).flatten(1).double().cov(correction=0)
    torch.testing.assert_close(covariance.diagonal().mean().item(), 1.0, rtol=1e-4, atol=0)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    whole = teacher.movedim(1, 0).flatten(1).double().cov(correction=0)
    eigenvalues = torch.linalg.eigvalsh(whole).flip(0)[:5]
    expected = eigenvalues.sqrt() / eigenvalues.sqrt().mean()  # of variance L, c^2 L^(-1/2) L is left
    torch.testing.assert_close(covariance.diagonal(), expected, rtol=1e-3, atol=1e-4)


def test_batches_are_measured_together_and_cells_outside_the_image_do_not_count():
    torch.manual_seed(0)
    teacher, labels = features(), zero_labels(4, 9, 11)
    whole = measured(FrameAlignment(Tap(3, 1), Tap(12, 1)), (teacher, labels))
    parts = measured(
        FrameAlignment(Tap(3, 1), Tap(12, 1)), *((each, zero_labels(1, 9, 11)) for each in teacher.split(1))
    )
    wider = torch.nn.functional.pad(teacher, (0, 2), value=1e4)
    ids = torch.nn.functional.pad(labels.ids, (0, 2), value=OUTSIDE)
    ids[:, 0, :11] = VOID  # inside the image, so it counts
    padded = measured(FrameAlignment(Tap(3, 1), Tap(12, 1)), (wider, Labels(ids)))
    for other in (parts, padded):
        torch.testing.assert_close(other.mean, whole.mean)
        torch.testing.assert_close(targets(other, teacher), targets(whole, teacher), rtol=1e-4, atol=1e-4)


def test_axes_without_variance_are_not_compared():
    torch.manual_seed(0)
    teacher = features(C=3).repeat(1, 2, 1, 1)  # six channels, of rank three
    align = measured(FrameAlignment(Tap(3, 1), Tap(6, 1)), (teacher, zero_labels(4, 9, 11)))
    found = targets(align, teacher)
    assert (found[:, 3:] == 0).all()
    torch.testing.assert_close(found[:, :3].var((0, 2, 3), correction=0).mean().item(), 1.0, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="the same in all cells"):
        measured(FrameAlignment(Tap(3, 1), Tap(6, 1)), (torch.ones(1, 6, 2, 2), zero_labels(1, 2, 2)))


def test_a_frame_that_was_not_measured_gives_no_number():
    loss, _ = FrameAlignment(Tap(3, 1), Tap(6, 1))(torch.ones(1, 3, 2, 2), torch.ones(1, 6, 2, 2), zero_labels(1, 2, 2))
    assert loss.isnan()


def test_the_target_never_moves_and_unrelated_features_cannot_be_learnt():
    torch.manual_seed(0)
    method = build_method("hmkd", SMALL, LARGE, target="frame", logit=0.0, pixels="inside")
    batches = [(random_output(SMALL, 8, 12, 16), random_output(LARGE, 8, 12, 16)) for _ in range(20)]
    labels = random_labels(8, 12, 16)
    method.calibrate(lambda: ((teacher, labels) for _, teacher in batches))
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    for student, teacher in batches * 4:
        optimizer.zero_grad()
        method(student, teacher, labels)["feature"].backward()
        optimizer.step()
    assert before.keys() == {"alignments.feature.mean", "alignments.feature.axes"}
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.named_buffers())
    fresh = method(random_output(SMALL, 8, 12, 16), random_output(LARGE, 8, 12, 16), labels)["feature"]
    assert fresh >= 0.9


def test_the_frame_has_no_anchor_and_travels_with_the_state():
    torch.manual_seed(0)
    options = {
        "target": "frame",
        "relation": 1.0,
        "patch": 2,
        "feature_pairs": [("stage3", "stage3"), ("stage1", "head")],
    }
    method = build_method("hmkd", SMALL, LARGE, **options)
    assert list(method.weights) == [
        "feature/stage3-stage3", "feature/stage1-head", "relation", "relation_anchor", "logit",
    ]  # fmt: skip
    assert method.needs_calibration
    assert not build_method("hmkd", SMALL, LARGE).needs_calibration
    student, teacher, labels = random_output(SMALL, 2, 6, 8), random_output(LARGE, 2, 6, 8), random_labels(2, 6, 8)
    method.calibrate(lambda: [(teacher, labels)])
    again = build_method("hmkd", SMALL, LARGE, **options)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    expected = method(student, teacher, labels)
    assert all(torch.equal(term, expected[name]) for name, term in again(student, teacher, labels).items())
    assert all(term.isfinite() for term in expected.values())
