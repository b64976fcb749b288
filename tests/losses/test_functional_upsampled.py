"""Cross-entropy of upsampled logits goes tile by tile: held against ``F.cross_entropy`` of resized logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses import functional as LF
from losses.labels import Grid

LARGE = ((37, 66), (298, 531))  # several tiles on either axis, for 2 images of 4 classes and one thread
SIZES = [((4, 5), (13, 17)), ((3, 6), (3, 11)), ((9, 8), (4, 5)), ((1, 1), (6, 7)), LARGE]
WEIGHTS = torch.tensor([0.1, 2.0, 0.0, 0.7])


@pytest.fixture(autouse=True)
def tiles_of_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


class Watch(TorchDispatchMode):
    """Counts operations, and keeps the number of elements of the largest floating-point result."""

    operations, largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.largest = max(self.largest, x.numel())
        return result


def example(grid, size, dtype=torch.float32):
    """Logits 2 4 *grid that want a gradient, and labels 2 *size of which the first rows are void."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 4, *grid)).to(dtype).requires_grad_()
    labels = torch.randint(4, (2, *size), dtype=torch.uint8)
    labels[0, : size[0] // 3] = 255
    return logits, labels


def plain(logits, labels, weight=None):
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels.long(), weight, ignore_index=255)


def plain_hard(logits, labels, threshold, min_kept):
    """Mean over images, by their valid pixels, of the mean over what is kept of each."""
    upsampled, total = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False), 0.0
    for image, y in zip(upsampled, labels.long(), strict=True):
        losses = F.cross_entropy(image[None], y[None], reduction="none", ignore_index=255)[0][y != 255]
        hardest = losses.sort(descending=True).values[: math.ceil(len(losses) * min_kept)]
        total = total + len(losses) * losses[losses >= min(hardest[-1], -math.log(threshold))].mean()
    return total / (labels != 255).sum()


def check(ours, logits, expected):
    """Value and gradient against those in float64."""
    exact = logits.detach().double().requires_grad_()
    value, oracle = ours(logits), expected(exact)
    (gradient,), (right,) = torch.autograd.grad(value, logits), torch.autograd.grad(oracle, exact)
    torch.testing.assert_close(value.double(), oracle, rtol=1e-6, atol=0)
    # Float32 positions of pixels some 500 from the edge put ``F.interpolate`` itself 3e-6 off.
    torch.testing.assert_close(gradient.double() / right.abs().max(), right / right.abs().max(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_value_and_gradient_are_those_of_resized_logits(grid, size, weight):
    logits, labels = example(grid, size)
    exact_weight = None if weight is None else weight.double()
    check(lambda z: LF.cross_entropy(z, Grid(labels), weight), logits, lambda z: plain(z, labels, exact_weight))


@pytest.mark.parametrize("mining", [(0.3, 0.05), (1e-3, 0.4)])  # by the threshold; by the share
@pytest.mark.parametrize(("grid", "size"), [SIZES[0], LARGE])
def test_hard_pixels_are_those_of_resized_logits(grid, size, mining):
    """In float64 on either side: rounding may not decide which pixels are kept."""
    logits, labels = example(grid, size, torch.float64)
    check(
        lambda z: LF.hard_pixel_cross_entropy(z, Grid(labels), *mining),
        logits,
        lambda z: plain_hard(z, labels, *mining),
    )


@pytest.mark.parametrize("loss", [LF.cross_entropy, lambda z, y: LF.hard_pixel_cross_entropy(z, y, 0.3, 0.1)])
def test_full_resolution_logits_never_exist(loss):
    logits = torch.randn(1, 40, 50, 80, requires_grad=True)
    labels = torch.randint(40, (1, 400, 640), dtype=torch.uint8)
    with Watch() as watch:
        loss(logits, Grid(labels)).backward()
    assert watch.largest < 40 * 400 * 640 / 8


@pytest.mark.parametrize("as_given", ["channels_last", "every other column"])
def test_layouts_change_nothing(as_given):
    logits, labels = example(*LARGE)
    expected = LF.cross_entropy(logits, Grid(labels))
    (gradient,) = torch.autograd.grad(expected, logits)
    if as_given == "channels_last":
        logits = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    else:
        logits = logits.detach().repeat_interleave(2, dim=3)[..., ::2].requires_grad_()
    loss = LF.cross_entropy(logits, Grid(labels))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_upsampled_in_float32_also_under_autocast(dtype):
    logits, labels = example(*LARGE, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LF.cross_entropy(logits, Grid(labels))
    exact = logits.detach().double().requires_grad_()
    oracle = plain(exact, labels)
    (gradient,), (right,) = torch.autograd.grad(loss, logits), torch.autograd.grad(oracle, exact)
    torch.testing.assert_close(loss.double(), oracle, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, right.to(dtype))


def test_gradient_is_bit_equal_when_repeated_and_follows_the_scale_of_the_loss():
    logits, labels = example(*LARGE)
    loss = LF.cross_entropy(logits, Grid(labels))
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    (scaled,) = torch.autograd.grad(1024 * loss, logits)
    (again,) = torch.autograd.grad(LF.cross_entropy(logits, Grid(labels)), logits)
    assert torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(scaled, 1024 * first)


def test_value_is_the_same_and_less_work_without_gradient():
    logits, labels = example(*LARGE)
    LF.cross_entropy(logits, Grid(labels))  # works out the bands, which are kept
    with Watch() as with_gradient:
        expected = LF.cross_entropy(logits, Grid(labels))
    with torch.no_grad(), Watch() as without:
        loss = LF.cross_entropy(logits, Grid(labels))
    with torch.inference_mode():
        inferred = LF.cross_entropy(logits, Grid(labels))
    assert torch.equal(loss, expected.detach())
    assert torch.equal(inferred, loss)
    assert not loss.requires_grad
    assert without.operations < 0.8 * with_gradient.operations


@pytest.mark.parametrize("grid", [(4, 5), (8, 10)])  # upsampled, as it is
@pytest.mark.parametrize("loss", [LF.cross_entropy, lambda z, y: LF.hard_pixel_cross_entropy(z, y, 0.3, 0.1)])
def test_a_non_finite_logit_shows_in_the_value(grid, loss):
    logits, labels = example(grid, (8, 10))
    with torch.no_grad():
        logits[1, 2, 3, 3] = math.nan
    assert loss(logits, Grid(labels)).isnan()


def test_gradients_in_float64():
    logits, labels = example((3, 4), (7, 9), torch.float64)
    weights = torch.rand(2, 7, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: LF.upsampled_cross_entropy(z, labels.clamp(max=3), weights), logits)
    assert torch.autograd.gradcheck(lambda z: LF.hard_pixel_cross_entropy(z, Grid(labels), 0.3, 0.2), logits)
