import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from engine import teacher_cache
from engine.teacher_cache import TeacherCache
from models.base import SegOutput
from utils.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
SHAPES = {"logits": (3, 2, 4), "stage3": (5, 1, 2)}
FACTS = {"teacher": {"weights": "abc"}, "class_names": ("sky", "road")}


class Usage(NamedTuple):
    free: int


def build(folder, facts=FACTS, length=6, shapes=SHAPES, dtype=torch.float32) -> TeacherCache:
    return TeacherCache(folder, facts, length, shapes, dtype, ALONE)


def output(count: int, seed: int = 0) -> SegOutput:
    """As a network gives it: with a tap more than is kept."""
    generator = torch.Generator().manual_seed(seed)
    maps = {name: torch.randn(count, *shape, generator=generator) for name, shape in SHAPES.items()}
    return SegOutput(maps["logits"], {"stage1": torch.zeros(count, 1, 8, 8), "stage3": maps["stage3"]}, None)


def assert_recalled(cache: TeacherCache, positions: list[int], expected: SegOutput, rows: list[int]) -> None:
    found = cache.recall(positions)
    assert torch.equal(found.logits, expected.logits[rows].half().to(cache.dtype))
    assert torch.equal(found.taps["stage3"], expected.taps["stage3"][rows].half().to(cache.dtype))
    assert found.aux is None


def test_what_is_stored_is_read_by_position_in_any_batch_and_by_any_run(tmp_path):
    cache, one, two = build(tmp_path), output(2, seed=1), output(2, seed=2)
    assert cache.recall([4, 1]) is None
    cache.store([4, 1], one)
    cache.store(torch.tensor([0, 5]), two)
    assert_recalled(cache, [4, 1], one, [0, 1])
    later = build(tmp_path, dtype=torch.bfloat16)
    assert_recalled(later, torch.tensor([1]), one, [1])
    assert_recalled(later, [5, 0, 5], two, [1, 0, 1])
    assert later.recall([1, 2]) is None


def test_float16_rounds_to_what_the_docstring_says(tmp_path):
    cache, values = build(tmp_path), output(6)
    values.logits.mul_(10 ** torch.linspace(-9, 4, values.logits.numel()).view_as(values.logits))
    cache.store(range(6), values)
    error = (cache.recall(range(6)).logits - values.logits).abs()
    assert (error <= (values.logits.abs() * 2**-11).clamp(min=2**-25)).all()
    assert error.max() > 0


def test_bfloat16_maps_are_read_as_they_were(tmp_path):
    cache = build(tmp_path, dtype=torch.bfloat16)
    logits = (output(6).logits * 10).bfloat16()
    logits[logits.abs() < 2**-14] = 0
    cache.store(range(6), output(6)._replace(logits=logits))
    assert torch.equal(cache.recall(range(6)).logits, logits)


def test_what_is_stored_stays_as_it_is(tmp_path):
    """Else the steps of a run that was stopped after storing would not be those that it takes again."""
    cache, first, second = build(tmp_path), output(1, seed=1), output(2, seed=2)
    cache.store([3], first)
    cache.store([3, 2], second)
    assert_recalled(cache, [3], first, [0])
    assert_recalled(cache, [2], second, [1])


def test_files_are_what_they_are_said_to_be(tmp_path):
    build(tmp_path).store([2], output(1))
    assert {path.name for path in tmp_path.iterdir()} == {"logits.f16", "stage3.f16", "done", "index.json", ".lock"}
    stored = np.fromfile(tmp_path / "logits.f16", np.float16).reshape(6, 3, 2, 4)
    assert (stored[2] == output(1).logits[0].half().numpy()).all()
    assert not stored[[0, 1, 3, 4, 5]].any()
    assert (tmp_path / "done").read_bytes() == b"\0\0\1\0\0\0"
    assert json.loads((tmp_path / "index.json").read_text())["shapes"] == {"logits": [3, 2, 4], "stage3": [5, 1, 2]}


@pytest.mark.parametrize("last", ["logits", "stage3", "done"])
def test_a_sample_whose_storing_was_cut_off_is_not_there(tmp_path, monkeypatch, last):
    """Before a file is written, all those before it being on the disk."""

    def cut(self, name, records, write=TeacherCache._write):
        if name == last:
            raise OSError("power cut")
        write(self, name, records)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "_write", cut)
        with pytest.raises(OSError, match="power cut"):
            build(tmp_path).store([0], output(1))
    assert build(tmp_path).recall([0]) is None


def test_a_tap_that_is_not_kept_is_named_with_the_key(tmp_path):
    cache = build(tmp_path)
    cache.store([0], output(1))
    with pytest.raises(ValueError, match=r"tap 'stage1', and its cache keeps stage3: name it in teacher.cache_taps"):
        cache.recall([0]).taps["stage1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {**FACTS, "teacher": {"weights": "abd"}}}, r"teacher.weights: 'abc' -> 'abd'"),
        ({"facts": {**FACTS, "class_names": ("road", "sky")}}, r"class_names: \['sky', 'road'\] -> \['road', 'sky'\]"),
        ({"length": 12}, "length: 6 -> 12"),
        ({"shapes": {"logits": (3, 2, 4)}}, r"shapes.stage3: \[5, 1, 2\] -> None"),
    ],
)
def test_a_folder_of_another_experiment_is_refused_by_what_differs(tmp_path, change, message):
    build(tmp_path)
    before = (tmp_path / "index.json").read_bytes()
    with pytest.raises(ValueError, match=rf"{tmp_path} holds the outputs of another experiment; (?s:.*)\n  {message}$"):
        build(tmp_path, **change)
    assert (tmp_path / "index.json").read_bytes() == before


def test_a_damaged_folder_is_refused(tmp_path):
    build(tmp_path)
    with open(tmp_path / "stage3.f16", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"stage3.f16 has 100 bytes; expected 120; delete"):
        build(tmp_path)
    (tmp_path / "stage3.f16").unlink()
    with pytest.raises(ValueError, match=r"stage3.f16 is missing; delete"):
        build(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        build(tmp_path)


def test_the_size_is_said_first_and_a_disk_without_the_room_is_refused(tmp_path, monkeypatch, capsys):
    """A sample takes (3 * 2 * 4 + 5 * 1 * 2) * 2 bytes and its mark: 69; 2^20 of them 69 MiB."""
    free = 68 * 2**20
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda folder: Usage(free))
    with pytest.raises(ValueError, match=r"is to grow by 69.0 MiB, and its disk has 68.0 MiB free: make room"):
        build(tmp_path / "large", length=2**20)
    assert "large: the teacher's outputs on 0 of 1048576 samples; 0.1 KiB a sample, 69.0 MiB" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "large").iterdir()] == [".lock"]
    build(tmp_path / "small", length=2).store([0], output(1))
    capsys.readouterr()
    free = 69
    build(tmp_path / "small", length=2)  # room for what is not stored yet is enough
    assert "outputs on 1 of 2 samples" in capsys.readouterr().out


def test_what_cannot_be_kept_is_refused(tmp_path):
    cache, values = build(tmp_path), output(1)
    with pytest.raises(ValueError, match=r"logits is \(1, 3, 3, 4\); expected \(1, 3, 2, 4\), from its tap"):
        cache.store([0], values._replace(logits=torch.zeros(1, 3, 3, 4)))
    for wrong in (1e5, math.nan):
        values.taps["stage3"][0, 2, 0, 1] = wrong
        with pytest.raises(ValueError, match="stage3 holds a number that is not finite or beyond 65504"):
            cache.store([0], values)
    assert cache.recall([0]) is None
