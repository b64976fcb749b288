"""Every loss is finite, has finite gradients and is not negative, at any size, class count, label and scale."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from losses import build_method
from losses.functional import (
    cross_entropy,
    hard_pixel_cross_entropy,
    kl_divergence,
    masked_mean,
    resize,
    self_attention_context,
    unit,
    warp,
)
from losses.labels import Grid, Labels, majority_labels
from losses.task import TaskLoss
from models.base import SegOutput, Tap
from tests.conftest import ROOT
from tests.losses.networks import random_output, spec, zero_labels
from utils.config import load_section
from utils.names import OUTSIDE, VOID

FILES = sorted((ROOT / "configs/_base_/methods").glob("*.py"))
# What a map may look like: its values are the regime's scale times random numbers, or one number everywhere.
REGIMES = ("usual", "huge", "tiny", "zero", "constant", "sure", "spike")
HUGE = 1e4


def a_map(shape, regime, generator):
    x = torch.randn(shape, generator=generator)
    if regime == "huge":
        x *= HUGE
    elif regime == "tiny":
        x *= 1e-20
    elif regime == "zero":
        x.zero_()
    elif regime == "constant":
        x.fill_(-3.0)
    elif regime == "sure":  # one channel rules
        x[:, 0] += 100.0
    elif regime == "spike":  # one cell is far off
        x[..., 0, 0] = HUGE
    return x


class Case(NamedTuple):
    """A batch, as the few numbers that it is made of."""

    classes: int
    shape: tuple[int, int, int]  # B H W
    regimes: tuple[str, str]  # of the student's maps and of the teacher's
    void: float  # share of the pixels
    void_image: bool  # the first image is nothing but void
    padded: bool  # the last column of pixels is padding
    pixels: str
    seed: int

    def build(self) -> tuple[SegOutput, SegOutput, torch.Tensor]:
        """The student's output and the teacher's, as ``pair`` declares them, and the labels."""
        B, H, W = self.shape
        generator = torch.Generator().manual_seed(self.seed)
        outputs = []
        for network, regime in zip(pair(self.classes), self.regimes, strict=True):
            grids = {name: (-(-H // stride), -(-W // stride)) for name, (_, stride) in network.taps.items()}
            maps = {n: a_map((B, tap.channels, *grids[n]), regime, generator) for n, tap in network.taps.items()}
            outputs.append(SegOutput(a_map((B, self.classes, *grids["head"]), regime, generator), maps, None))
        labels = torch.randint(self.classes, self.shape, generator=generator, dtype=torch.uint8)
        labels = labels.masked_fill(torch.rand(self.shape, generator=generator) < self.void, VOID)
        if self.void_image:
            labels[0] = VOID
        if self.padded:
            labels[..., -1] = OUTSIDE
        return *outputs, labels


regimes = st.sampled_from(REGIMES)
cases = st.builds(
    Case,
    classes=st.sampled_from([1, 2, 3, 19]),
    # BatchNorm has no variance of one value: two cells at least on the coarsest grid.
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(3, 9)),
    regimes=st.tuples(regimes, regimes),
    void=st.sampled_from([0.0, 0.3, 1.0]),
    void_image=st.booleans(),
    padded=st.booleans(),
    pixels=st.sampled_from(["labelled", "inside"]),
    seed=st.integers(0, 2**32 - 1),
)


def pair(K):
    """Two small networks of different families on different grids."""
    student = spec("cnn", (6, 8, 8, 8), (1, 1, 2, 2), Tap(4, 1), num_classes=K)
    return student, spec("transformer", (8, 8, 12, 8), (1, 2, 2, 2), Tap(4, 2), num_classes=K)


def check(terms, inputs):
    """Finite, not below zero but for rounding, and so are the gradients."""
    for name, term in terms.items():
        assert term.isfinite(), (name, term)
        assert term >= -1e-6 * HUGE, (name, term)
    total = sum(terms.values())
    if total.requires_grad:
        total.backward()
    for name, x in inputs.items():
        assert x.grad is None or x.grad.isfinite().all(), name


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
@settings(max_examples=settings.default.max_examples // 4)
@given(case=cases)
def test_methods(file, case):
    student, teacher, labels = case.build()
    section = load_section(file, "distill")
    if section["type"] == "cirkd":
        section |= {"pixel_queue": 10, "region_queue": 4, "pixel_keys": 40, "region_keys": 20, "batch_cells": 16}
    if section["type"] == "afdcd":
        section |= {"groups": 2, "patch": 2, "pool": 2}
    if section["type"] == "hmkd":
        section |= {"patch": 3}
    assume(section["type"] != "dkd" or case.classes > 1)
    torch.manual_seed(case.seed)
    networks = pair(case.classes)
    method = build_method(student=networks[0], teacher=networks[1], **section | {"pixels": case.pixels})
    method.calibrate(lambda: [(random_output(networks[1], 2, 8, 8), zero_labels(2, 8, 8))])
    inputs = {"logits": student.logits, **student.taps}
    inputs |= {f"teacher's {name}": x for name, x in (("logits", teacher.logits), *teacher.taps.items())}
    for x in inputs.values():
        x.requires_grad_()
    terms, counts = method(student, teacher, Labels(labels)), method.counts(Labels(labels))
    assert terms.keys() == counts.keys() == method.weights.keys()
    assert all(0 <= count < torch.inf for count in counts.values())
    assert all(terms[name] == 0 for name, count in counts.items() if not count)
    check(terms, inputs | dict(method.named_parameters()))
    assert all(x.grad is None for name, x in inputs.items() if name.startswith("teacher's"))


@given(cases, st.tuples(st.floats(1e-3, 0.999), st.floats(1e-3, 1)), st.booleans())
def test_losses_on_labels(case, ohem, weighted):
    K, (student, _, labels) = case.classes, case.build()
    weights = [float(k % 3) for k in range(K)] if weighted else None  # a class of no weight too
    logits = student.logits.requires_grad_()
    valid = labels < OUTSIDE
    for task in (TaskLoss(class_weights=weights), TaskLoss(class_weights=weights, ohem=ohem)):
        terms = task(SegOutput(logits, {}, None), Labels(labels))
        assert valid.any() or terms["task"] == 0
        check(terms, {"logits": logits})
    with torch.no_grad():
        mined, plain = hard_pixel_cross_entropy(logits, Grid(labels), *ohem), cross_entropy(logits, Grid(labels))
    assert mined >= plain * (1 - 1e-4) - 1e-6  # those kept are the hardest


@given(cases, st.floats(0.1, 20), st.integers(1, 4))
def test_functions(case, temperature, side):
    K, (student, teacher, labels) = case.classes, case.build()
    size = tuple(student.logits.shape[-2:])
    x = student.logits.requires_grad_()
    valid = labels < OUTSIDE
    check({"kl": kl_divergence(x, resize(teacher.logits, size), valid, temperature)}, {"x": x})
    assert kl_divergence(x, x, valid, temperature) == 0
    values = x.detach()[:, 0]
    expected = float(values.double()[valid].mean()) if valid.any() else 0.0
    assert float(masked_mean(values, valid)) == pytest.approx(expected, rel=1e-5, abs=1e-6 * float(values.abs().max()))
    lengths = unit(x.flatten(2)).norm(dim=-1)
    assert (lengths <= 1 + 1e-3).all()  # the squares of the tiny are subnormal
    assert ((lengths > 0.99) | (lengths == 0) | (x.flatten(2).norm(dim=-1) < 1e-15)).all()
    check({"unit": unit(x.flatten(2)).square().mean()}, {"x": x})
    context = self_attention_context(x, valid)
    assert (context.amax((2, 3)) <= x.amax((2, 3)) + 1e-3 * x.abs().max()).all()  # means of the map's cells
    check({"context": context.square().mean()}, {"x": x})
    assert torch.equal(warp(x, torch.zeros(len(x), 2, *size)), x)
    offsets = (100 * torch.randn(len(x), 2, *size)).requires_grad_()
    moved = warp(x, offsets)
    assert (moved.abs() <= x.abs().amax((2, 3), keepdim=True) * (1 + 1e-3)).all()  # beyond the edge is the edge
    check({"warp": moved.square().mean()}, {"x": x, "offsets": offsets})
    patches = Labels(labels).patches(1, side)
    assert patches.ids.shape == (len(labels), -(-size[0] // side) * -(-size[1] // side), side * side)
    assert patches.count("labelled") == valid.sum()
    assert patches.count("inside") == (labels != OUTSIDE).sum()
    for patch, label in zip(patches.ids.flatten(0, 1), majority_labels(patches, K).flatten(), strict=True):
        votes = patch[patch < OUTSIDE].bincount(minlength=K)
        assert label == VOID if not votes.any() else votes[int(label)] == votes.max()
