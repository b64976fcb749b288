"""Reads and compares what a run left; what several test files need."""

import json

import pytest
import torch

import train_kd


class PowerCutError(Exception):
    """Nobody catches it: as abrupt as a crash within one process can be."""


def metrics(work_dir):
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


def losses(work_dir):
    return [line["loss"] for line in metrics(work_dir) if "loss" in line]


def weights(path):
    """The student's and the method's tensors in a checkpoint, by name."""
    state = torch.load(path, weights_only=True)
    return {f"{part}.{name}": value for part in ("student", "method") for name, value in state[part].items()}


def learnt(tensors):
    """Without running statistics, which follow every forward pass."""
    return {name: value for name, value in tensors.items() if "running_" not in name and "batches_tracked" not in name}


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def refused(arguments):
    """The message with which ``train_kd.py`` refuses these arguments."""
    with pytest.raises(SystemExit) as stop:
        train_kd.main([str(argument) for argument in arguments])
    assert str(stop.value).startswith("error: ")
    return str(stop.value)
