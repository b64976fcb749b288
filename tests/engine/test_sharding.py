"""A teacher whose weights two ranks share computes what the whole one does, however often each rank runs it."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from engine.evaluation import evaluate
from engine.sharding import keep_gathering, shard_network
from engine.teacher import cast_weights
from models import MappedModel, build_model
from utils.distributed import World

CPU = torch.device("cpu")


def mapped_teacher() -> MappedModel:
    """Of five classes, merged to three; with the blocks of four stages and, beside them, a head."""
    torch.manual_seed(0)
    model = MappedModel(build_model("mit_b0", "segformer", 5, width=16), (0, 1, None, 1, 2), 3)
    return model.requires_grad_(False).eval()


class Streets:
    """Images of several sizes: windows of 64 see them in 1, 2 and 4 passes."""

    num_classes = 3

    def __init__(self, length: int):
        self.sizes = [(64, 64), (64, 96), (96, 96)][:length]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image, label = (
            torch.randint(0, high, (*channels, *self.sizes[index]), dtype=torch.uint8, generator=generator)
            for high, channels in ((256, (3,)), (3, ()))
        )
        return {"image": image, "label": label, "name": str(index)}


def held(model: torch.nn.Module) -> int:
    """Bytes of weights on this rank."""
    local = (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())
    return sum(p.numel() * p.element_size() for p in local)


def both_ranks(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=3)
    )
    world, images = World(rank, 2, CPU), torch.randint(0, 256, (2, 3, 64 + 32 * rank, 96), dtype=torch.uint8)
    for dtype in (None, torch.bfloat16):
        whole = mapped_teacher()
        if dtype is not None:
            cast_weights(whole, dtype)
        sharded = copy.deepcopy(whole)
        shard_network(sharded, world, channels_last=True)
        whole.to(memory_format=torch.channels_last)

        def same(whole=whole, sharded=sharded, dtype=dtype) -> None:
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                expected, found = whole(images), sharded(images)
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
            for tap, maps in expected.taps.items():
                torch.testing.assert_close(found.taps[tap], maps, rtol=1e-5, atol=1e-6)
            assert held(sharded) == pytest.approx(held(whole) / 2, rel=1e-3)  # between passes

        for length in (3, 1):  # of the one image the second rank gets none
            found, expected = (
                evaluate(
                    model, Streets(length), device=CPU, autocast_dtype=dtype, progress=False,
                    mode="slide", crop_size=(64, 64), stride=(32, 32),
                )
                for model in (sharded, whole)
            )  # fmt: skip
            assert found.per_class_iou == pytest.approx(expected.per_class_iou, abs=1e-3)
            same()  # after an evaluation, too: it runs in another mode
        with keep_gathering(sharded, world, dtype):
            if rank == 1:  # by itself
                same()
    dist.destroy_process_group()


def test_two_ranks_hold_half_each_and_compute_the_whole(tmp_path):
    spawn(both_ranks, (str(tmp_path / "store"),), nprocs=2)
