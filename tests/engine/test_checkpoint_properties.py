"""A saved state comes back as it was; a file that is not as it was written never does, whatever happened to it."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint import load_checkpoint, save_checkpoint
from tests.engine.test_checkpoint import STATE
from tests.fuzz.mutation import damaged

tensors = st.builds(
    lambda seed, shape, dtype: torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    plain | tensors,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text() | st.integers(), some, max_size=3),
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(state=st.fixed_dictionaries(dict.fromkeys(STATE, values)))
def test_any_state_comes_back(state, tmp_path):
    save_checkpoint(state, tmp_path / "last.pt")
    assert same(load_checkpoint(tmp_path / "last.pt"), state)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(STATE, path)
    return path.read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt .*damaged"):
        load_checkpoint(path)


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_truncation_and_one_flipped_bit_are_noticed(content, share, bit, tmp_path):
    at = int(share * len(content))
    refused(tmp_path / "last.pt", content[:at])
    refused(tmp_path / "last.pt", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])


@given(seed=st.integers(0, 2**32 - 1))
def test_no_damage_loads(content, seed, tmp_path):
    other = damaged(content, random.Random(seed))
    if other != content:
        refused(tmp_path / "last.pt", other)
