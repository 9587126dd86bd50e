"""Every tensor that goes through a collective is on the device and contiguous; two ranks compute what one computes."""

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from reproduce.engine.distributed.collectives import any_rank
from tests.gpu.trainings import CONFIGS, STEPS_PER_EPOCH, build_training
from tests.nccl_conditions import COLLECTIVES, require_contiguous
from tests.runs import run


@pytest.fixture
def devices_used(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A process group of this process alone; the device of each tensor that its collectives get."""
    found: list[str] = []

    def watch(collective: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(collective)
        def watched(*args: Any, **kwargs: Any) -> Any:
            for argument in (*args, *kwargs.values()):
                tensors = argument if isinstance(argument, list) else [argument]
                found.extend(each.device.type for each in tensors if isinstance(each, torch.Tensor))
            return collective(*args, **kwargs)

        return watched

    for name in COLLECTIVES:
        monkeypatch.setattr(dist, name, watch(require_contiguous(getattr(dist, name))))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    yield found
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CONFIGS)
def test_collectives_get_contiguous_tensors_on_the_device(
    device: torch.device, devices_used: list[str], name: str
) -> None:
    """In two epochs, in the state of a checkpoint and in a resume."""
    training = build_training(name, device, num_batches=STEPS_PER_EPOCH + 1)
    training.trainer.train(training.batches, 0, len(training.batches))
    training.method.load_state_dict(training.method.state_dict())
    assert any_rank(True)
    assert len(devices_used) > len(training.batches)
    assert set(devices_used) == {device.type}


@pytest.mark.parametrize("module", ["ranks", "method_ranks"])
def test_two_gpus_compute_what_one_computes(gpu: torch.device, tmp_path: Path, module: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    outcomes = []
    for processes in (1, 2):
        done = run(f"tests.unit.engine.{module}", str(tmp_path / f"{processes}.pt"), processes=processes)
        assert done.returncode == 0, done.stderr
        outcomes.append(torch.load(tmp_path / f"{processes}.pt", weights_only=True))
    alone, together = outcomes
    names = CONFIGS.keys() & alone.keys() or {"loss"}
    for name in names:
        ours, theirs = (found[name] if name == "loss" else found[name]["loss"] for found in (together, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
