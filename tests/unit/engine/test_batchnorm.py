"""BatchNorm groups and their statistics; GPUs and apex are replaced by fakes."""

import copy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from reproduce.engine import batchnorm
from reproduce.engine.batchnorm import BatchNormGroups
from reproduce.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(batchnorm, "world_size", lambda: 2)


@pytest.mark.parametrize(
    ("processes", "batch_size", "images", "groups"),
    [
        (64, 4096, 512, BatchNormGroups(8)),
        (8, 4096, 512, BatchNormGroups(1)),
        (2, 4096, 512, BatchNormGroups(1, 4, 512)),
        (1, 256, 32, BatchNormGroups(1, 8, 32)),
        (4, 256, None, BatchNormGroups(4)),
        (64, 2560, 320, BatchNormGroups(8)),
        (128, 1536, 96, BatchNormGroups(8)),
        (1, 32, None, BatchNormGroups(1)),
    ],
)
def test_groups_of_a_batch_size_and_process_count(
    monkeypatch: pytest.MonkeyPatch, processes: int, batch_size: int, images: int | None, groups: BatchNormGroups
) -> None:
    monkeypatch.setattr(batchnorm, "world_size", lambda: processes)
    assert batchnorm.batchnorm_groups(batch_size, images) == groups


@pytest.mark.parametrize(("processes", "images"), [(64, 100), (64, 8192), (64, 96)])
def test_impossible_groups_raise(monkeypatch: pytest.MonkeyPatch, processes: int, images: int) -> None:
    monkeypatch.setattr(batchnorm, "world_size", lambda: processes)
    with pytest.raises(UserError, match=f"BatchNorm over {images} images can't be had with {processes} processes"):
        batchnorm.batchnorm_groups(4096, images)


@pytest.mark.parametrize("shape", [(5,), (5, 3, 3)])
def test_grouped_batchnorm_equals_batchnorm_per_group(shape: tuple[int, ...]) -> None:
    num_crops, num_groups, images = 3, 2, 4
    alone = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(5).double()
    nn.init.uniform_(alone.weight)
    ours = batchnorm.convert_batchnorm(copy.deepcopy(alone), BatchNormGroups(1, num_groups, images))
    assert not batchnorm.uses_global_stats(ours)
    x = torch.randn(num_crops, num_groups * images, *shape, dtype=torch.float64, requires_grad=True)
    ask = torch.randn_like(x)
    normalized = ours(x.flatten(0, 1)).unflatten(0, (num_crops, -1))
    (gradient,) = torch.autograd.grad((normalized * ask).sum(), x)
    for group in range(num_groups):
        mine = slice(group * images, (group + 1) * images)
        own = x.detach()[:, mine].clone().requires_grad_()
        expected = alone(own.flatten(0, 1)).unflatten(0, (num_crops, -1))
        torch.testing.assert_close(normalized[:, mine], expected)
        torch.testing.assert_close(gradient[:, mine], torch.autograd.grad((expected * ask[:, mine]).sum(), own)[0])
        if group == 0:
            torch.testing.assert_close(ours.state_dict(), alone.state_dict())  # the running averages among them
    alone.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x[0]), alone.eval()(x[0]))


@pytest.mark.parametrize("num_crops", [1, 3])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_grouped_batchnorm_keeps_the_memory_format(num_crops: int, layout: torch.memory_format) -> None:
    norm = batchnorm.convert_batchnorm(nn.BatchNorm2d(5), BatchNormGroups(1, 2, 4))
    x = torch.randn(num_crops * 8, 5, 6, 6).contiguous(memory_format=layout).requires_grad_()
    normalized = norm(x)
    (gradient,) = torch.autograd.grad(normalized, x, torch.randn_like(normalized))
    assert normalized.is_contiguous(memory_format=layout)
    assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("two_gpus")
def test_apex_gets_groups_of_the_requested_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(net: nn.Module, process_group: Any) -> nn.Module:
        net.group = process_group
        return net

    parallel: Any = ModuleType("apex.parallel")
    parallel.convert_syncbn_model = convert
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.parallel", parallel)
    monkeypatch.setattr(batchnorm, "subgroup", lambda size: f"group of {size}")
    batchnorm.validate_sync_batchnorm("apex")
    assert batchnorm._to_sync_batchnorm(nn.BatchNorm1d(3), 2, "apex").group == "group of 2"


@pytest.mark.usefixtures("two_gpus")
def test_missing_apex_raises_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(UserError, match=r"apex with its SyncBatchNorm is not installed .*or use torch, which gives"):
        batchnorm.validate_sync_batchnorm("apex")


@pytest.mark.usefixtures("two_gpus")
def test_torch_gets_groups_of_the_requested_size(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SimpleNamespace()
    monkeypatch.setattr(batchnorm, "subgroup", lambda size: group if size == 2 else None)
    net = batchnorm._to_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), 2, "torch")
    (norm,) = net.children()
    assert isinstance(norm, nn.SyncBatchNorm)
    assert norm.process_group is group


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranks_on_cpus_normalize_in_any_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(batchnorm, "all_reduce_sum_differentiable", lambda totals, _: totals)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    alone = nn.BatchNorm2d(3).to(weights)
    shared = copy.deepcopy(alone)
    shared.__class__ = batchnorm.CpuSyncBatchNorm  # type: ignore[assignment]
    shared.process_group = None  # type: ignore[assignment]
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, expected = shared(images), alone(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(shared.running_var, alone.running_var)


@pytest.mark.parametrize(("processes", "batch_size"), [(64, 16), (8, 10), (3, 4096)])
def test_a_batch_that_cannot_be_shared_is_a_sentence(
    processes: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of no image would divide by zero, and the launcher would start the run three times more."""
    monkeypatch.setattr(batchnorm, "world_size", lambda: processes)
    with pytest.raises(UserError, match=f"batch_size {batch_size} can't be shared evenly by {processes} processes"):
        batchnorm.batchnorm_groups(batch_size, None)
