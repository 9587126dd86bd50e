"""A rank that waits for others says so in the log, and gives up after the config's timeout."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from reproduce.config.compose import compose
from reproduce.engine.distributed import collectives


class Expired:
    """A timer whose time is over as soon as it starts, or never."""

    expires = True

    def __init__(self, _seconds: float, call: Callable[..., None], args: Any, kwargs: Any) -> None:
        self.call: Callable[[], object] = lambda: call(*args, **kwargs)
        self.daemon = False

    def start(self) -> None:
        assert self.daemon
        if self.expires:
            self.call()

    def cancel(self) -> None:
        self.call = lambda: pytest.fail("said after the wait")


@pytest.fixture
def rank_2_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Timer", Expired)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, _op: tensor)


@pytest.mark.usefixtures("rank_2_of_4")
@pytest.mark.parametrize("wait", [collectives.barrier, lambda: collectives.any_rank(True)])
def test_a_long_wait_is_logged(wait: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    wait()
    said = capsys.readouterr().err
    assert said == "rank 2 waits for the other ranks; the run ends after cluster.collective_timeout_minutes\n"


@pytest.mark.usefixtures("rank_2_of_4")
def test_others_learn_for_what_they_wait(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with collectives.others_wait("merges the features of all ranks"):
        pass
    assert "the other 3 ranks wait for rank 2, which merges the features of all ranks;" in capsys.readouterr().err
    monkeypatch.setattr(Expired, "expires", False)
    with collectives.others_wait("merges the features of all ranks"):
        pass
    collectives.barrier()
    assert capsys.readouterr().err == ""


def test_one_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Timer", None)
    collectives.barrier()
    assert collectives.any_rank(True)
    with collectives.others_wait("writes the last checkpoint"):
        pass


def test_the_process_group_has_the_configs_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(collectives, "rendezvous", lambda _url: iter([(None, 0, 2)]))
    monkeypatch.setattr(collectives, "require_same_device", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(options, backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    cluster = compose("pretrain", ["experiment=swav_800ep", "cluster.collective_timeout_minutes=45"]).cluster
    with collectives.process_group(cluster.gpus_per_process, cluster.collective_timeout_minutes):
        pass
    assert given["timeout"] == datetime.timedelta(minutes=45)
    assert given["backend"] == "gloo"
    assert compose("pretrain", ["experiment=swav_800ep"]).cluster.collective_timeout_minutes == 120
    assert not torch.cuda.is_available()


def test_a_group_of_ranks_has_the_timeout_of_all() -> None:
    """A collective of BatchNorm's group, too, waits while a disk hangs; by itself, NCCL would wait for 10 minutes."""
    timeout = datetime.timedelta(minutes=45)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        backend = collectives.subgroup(1)._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timeout
    finally:
        dist.destroy_process_group()
