"""Labelled and unlabelled samples in one sequence of numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.base import SegDataset, read_list
from datasets.samplers import PositionBatches
from datasets.stream import JointStream, Pool, TrainStream

NAMES, PALETTE, IDS = ["a", "b"], [(0, 0, 0), (255, 0, 0)], {0: 0, 1: 1}


def make(root, number, first=0):
    """Images of one grey level, their number; the labels of odd ones cannot be read."""
    lines = []
    for i in range(first, first + number):
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(root / f"{i}.png")
        (root / f"{i}_label.png").write_bytes(b"not an image")
        if i % 2 == 0:
            Image.fromarray(np.full((4, 6), 1, np.uint8)).save(root / f"{i}_label.png")
        lines.append(f"{i}.png {i}_label.png\n")
    (root / f"list{first}.txt").write_text("".join(lines))
    return SegDataset(root, f"list{first}.txt", NAMES, PALETTE, IDS)


def plain(image, label, rng):
    return image[:], label


def level(sample):
    return int(sample["image"].flatten()[0])


def test_the_labels_of_an_unlabelled_pool_are_never_read(tmp_path):
    one, two = make(tmp_path, 4), make(tmp_path, 2, first=10)
    pool = Pool([(one, [3, 1]), (two, range(2))], labels=False)
    assert (len(pool), pool.names, pool.num_classes) == (4, ["3", "1", "10", "11"], 2)
    assert pool.images == [tmp_path / f"{name}.png" for name in (3, 1, 10, 11)]
    for number, expected in enumerate((3, 1, 10, 11)):
        image, label = pool.open(number)
        assert (image[:] == expected).all()
        assert (label == 255).all()
    with pytest.raises(ValueError, match="1_label.png cannot be decoded"):
        Pool([(one, [1])]).open(0)


def test_negative_positions_are_the_unlabelled_stream_and_wrap_in_their_own_period(tmp_path):
    """Two labelled and three unlabelled samples, one epoch: 5 different ones, at the places 0, 1 and -1, -2, -3."""
    dataset = make(tmp_path, 5)
    labelled = TrainStream(Pool([(dataset, [0, 2])]), plain, seed=1, epochs=1)
    unlabelled = TrainStream(Pool([(dataset, [1, 3, 4])], labels=False), plain, seed=1, epochs=1, number=1)
    joint = JointStream(labelled, unlabelled)
    assert (joint.period, joint.num_samples) == (5, 5)
    assert {level(joint[p]) for p in (0, 1)} == {0, 2}
    assert {level(joint[p]) for p in (-1, -2, -3)} == {1, 3, 4}
    assert [joint[p]["position"] for p in (0, 3, -1, -3, -4, -8)] == [0, 1, -1, -3, -1, -2]
    assert [level(joint[p]) for p in (-4, -8)] == [level(joint[p]) for p in (-1, -2)]
    assert (joint[0]["label"] == 1).all()
    assert (joint[-1]["label"] == 255).all()
    assert len({joint[p]["position"] % joint.period for p in (0, 1, -1, -2, -3)}) == 5
    alone = JointStream(labelled)
    assert (alone.period, torch.equal(alone[1]["image"], joint[1]["image"])) == (2, True)


def test_the_two_streams_of_one_seed_are_independent(tmp_path):
    dataset = make(tmp_path, 40)
    orders = [[TrainStream(dataset, plain, seed=0, number=n).index(p) for p in range(40)] for n in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_every_micro_batch_has_its_share_of_unlabelled_samples():
    """Step 1 of 4 labelled and 2 unlabelled samples, in two micro-batches: by one rank or by two the same ones."""
    one = list(PositionBatches(1, 2, 4, accumulate=2, unlabelled=2))
    assert one == [[4, 5, -3], [6, 7, -4]]
    assert [list(PositionBatches(1, 2, 4, 2, rank, unlabelled=2)) for rank in range(2)] == [one[:1], one[1:]]
    assert list(PositionBatches(2, 3, 0, unlabelled=2)) == [[-5, -6]]
    with pytest.raises(ValueError, match="unlabelled_batch 3 .*cannot be divided evenly by world_size 2"):
        PositionBatches(0, 1, 4, 2, unlabelled=3)
    with pytest.raises(ValueError, match="batch_size 0"):
        PositionBatches(0, 1, 0)


def test_a_pattern_finds_images_in_the_order_of_their_names(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/c/3.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert read_list(tmp_path, "**/*.png") == [("a/1.png", None), ("a/c/3.png", None), ("b/2.png", None)]
    with pytest.raises(FileNotFoundError, match=r"no file under .* matches 'z/\*.png'"):
        read_list(tmp_path, "z/*.png")
