import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty

import pytest
import torch
import torch.distributed as dist

from utils import distributed
from utils.distributed import fresh_store, lost_process_message


@pytest.fixture
def rank_0_of_3(monkeypatch):
    """With the store that torchrun keeps; gives it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    facts = {"RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in facts.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "ROLL_CALL", 0.3)
    return store


def test_the_ranks_that_do_not_answer_are_named(rank_0_of_3):
    rank_0_of_3.set("roll_call/2", "here")
    message = lost_process_message(RuntimeError("[../pair.cc:534] Connection closed by peer [::1]:1234\nframe 1"), 60.0)
    assert "rank 0: another rank died, or did not answer within 60 s (train.timeout); no answer from rank 1." in message
    assert message.endswith("(RuntimeError: [../pair.cc:534] Connection closed by peer [::1]:1234)")


def test_without_anybody_to_ask_nobody_is_named(rank_0_of_3, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    assert "no answer from rank (unknown" in lost_process_message(dist.DistBackendError("NCCL error"), 60.0)


def test_the_signal_that_ended_a_worker_is_told():
    """As PyTorch has it where a container gives too little shared memory."""
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    error.__cause__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. Raise the limit.\nmore")
    assert lost_process_message(error, 60.0).endswith(
        "(RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. Raise the limit.)"
    )
    error.__cause__ = Empty()
    assert lost_process_message(error, 60.0).endswith(
        "(RuntimeError: DataLoader worker (pid(s) 7) exited unexpectedly)"
    )


def life(store, late=None, size=3):
    """The parts of the store that the ranks of one life agree on; rank ``late`` comes 0.2 s after the others."""

    def rank(number):
        if number == late:
            time.sleep(0.2)
        part = fresh_store(store.clone(), number, size, timeout=20)
        part.set(f"address of {number}", str(number))
        return part

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


@pytest.mark.parametrize("late", [None, 0, 1])
def test_ranks_that_are_started_anew_do_not_read_what_the_dead_have_written(rank_0_of_3, late):
    for name in ("roll_call/1", "token/2"):
        rank_0_of_3.set(name, "of a life that ended before it began")
    first, second = life(rank_0_of_3), life(rank_0_of_3, late)
    for parts in (first, second):
        assert [part.get(f"address of {(i + 1) % 3}") for i, part in enumerate(parts)] == [b"1", b"2", b"0"]
    second[0].set("said", "")
    assert [part.check(["said"]) for part in (*second, *first)] == 3 * [True] + 3 * [False]
    assert not rank_0_of_3.check(["roll_call/1"])


def test_ranks_that_do_not_come_are_named(rank_0_of_3):
    rank_0_of_3.set("token/1", "of an earlier life")
    with pytest.raises(dist.DistStoreError, match=r"after 0.1 s, these ranks have not joined: \[1, 2\]"):
        fresh_store(rank_0_of_3, 0, 3, timeout=0.1)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), torch.OutOfMemoryError("full")]
)
def test_other_errors_stay_what_they_are(rank_0_of_3, error):
    with pytest.raises(type(error)) as raised:
        lost_process_message(error, 60.0)
    assert raised.value is error


def test_one_process_has_no_peers(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="Timed out waiting"):
        lost_process_message(RuntimeError("Timed out waiting"), 60.0)
