import pytest
import torch
import torch.distributed as dist

from utils import distributed
from utils.distributed import lost_peer


@pytest.fixture
def rank_0_of_3(monkeypatch):
    """With the store that torchrun keeps; gives it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    facts = {"RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in {**facts, "TORCHELASTIC_RESTART_COUNT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "ROLL_CALL", 0.3)
    return store


def test_the_ranks_that_do_not_answer_are_named(rank_0_of_3):
    rank_0_of_3.set("roll_call/0/1", "here")  # in an earlier life
    rank_0_of_3.set("roll_call/1/2", "here")
    message = lost_peer(RuntimeError("[../pair.cc:534] Connection closed by peer [::1]:1234\nframe 1"), 60.0)
    assert "rank 0: another rank died, or did not answer within 60 s (train.timeout); no word from rank 1." in message
    assert message.endswith("(RuntimeError: [../pair.cc:534] Connection closed by peer [::1]:1234)")


def test_without_anybody_to_ask_nobody_is_named(rank_0_of_3, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    assert "no word from rank (unknown" in lost_peer(dist.DistBackendError("NCCL error"), 60.0)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), torch.OutOfMemoryError("full")]
)
def test_other_errors_stay_what_they_are(rank_0_of_3, error):
    with pytest.raises(type(error)) as raised:
        lost_peer(error, 60.0)
    assert raised.value is error


def test_one_process_has_no_peers(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="Timed out waiting"):
        lost_peer(RuntimeError("Timed out waiting"), 60.0)
