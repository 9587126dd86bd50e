"""Which SyncBatchNorm a GPU run takes, and over how many ranks; GPUs and apex are played by stand-ins."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from reproduce.engine import distributed
from reproduce.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)


@pytest.mark.parametrize(
    ("processes", "batch_size", "images", "ranks"),
    [
        (64, 4096, 512, 8),
        (8, 4096, 512, 1),
        (4, 256, None, 4),
        (64, 2560, 320, 8),
        (128, 1536, 96, 8),
        (1, 32, None, 1),
    ],
)
def test_ranks_that_share_statistics(
    monkeypatch: pytest.MonkeyPatch, processes: int, batch_size: int, images: int | None, ranks: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    assert distributed.batchnorm_ranks(batch_size, images) == ranks


@pytest.mark.parametrize(("processes", "images"), [(4, 512), (64, 100), (64, 8192)])
def test_groups_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch, processes: int, images: int) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    with pytest.raises(UserError, match=f"BatchNorm over {images} images can't be had with {processes} processes"):
        distributed.batchnorm_ranks(4096, images)


@pytest.mark.usefixtures("two_gpus")
def test_apex_gets_groups_of_the_asked_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(net: nn.Module, process_group: Any) -> nn.Module:
        net.group = process_group
        return net

    parallel: Any = ModuleType("apex.parallel")
    parallel.convert_syncbn_model = convert
    parallel.create_syncbn_process_group = lambda size: f"group of {size}"
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.parallel", parallel)
    distributed.check_sync_batchnorm("apex")
    assert distributed._sync_batchnorm(nn.BatchNorm1d(3), 2, "apex").group == "group of 2"


@pytest.mark.usefixtures("two_gpus")
def test_apex_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(UserError, match=r"apex with its SyncBatchNorm is not installed .*sync_batchnorm=torch gives"):
        distributed.check_sync_batchnorm("apex")


@pytest.mark.usefixtures("two_gpus")
def test_torch_gets_groups_of_the_asked_size(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SimpleNamespace()
    monkeypatch.setattr("torch.distributed.new_subgroups", lambda size: (group, []) if size == 2 else None)
    net = distributed._sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), 2, "torch")
    (norm,) = net.children()
    assert isinstance(norm, nn.SyncBatchNorm)
    assert norm.process_group is group
