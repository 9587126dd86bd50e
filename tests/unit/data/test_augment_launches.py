"""What the augmentation of a batch asks of a GPU; the "meta" device, which computes nothing, stands for one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce.config.schema import Augment
from reproduce.data.pipeline import augment
from reproduce.data.pipeline.multicrop import draw_augment_parameters
from reproduce.data.pipeline.sampler import rng_for
from tests.host_sync import NoHostSync

VIEWS = ("chunk", "detach", "expand", "select", "slice", "split", "split_with_sizes", "unbind", "unsqueeze", "view")
OPERATIONS = ("flip", *("jitter",) * 4 * 4, "gray", "blur")
FULL = Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0])


class Launches(TorchDispatchMode):
    """Counts the operations that would launch a kernel or a copy, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.num_uploads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        options = kwargs or {}
        if name not in VIEWS:
            self.names.append(name)
        self.num_uploads += name == "_to_copy" and options.get("device") not in (None, args[0].device)
        return func(*args, **options)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setitem(augment.BLOCK_PIXELS, "meta", augment.BLOCK_PIXELS["cuda"])
    return torch.device("meta")


def augment_batch(device: torch.device, num_crops: int = 64) -> None:
    rows = np.stack([draw_augment_parameters(rng_for(0, 0, index), FULL) for index in range(num_crops)])
    crops = torch.zeros(num_crops, 3, 32, 32, dtype=torch.uint8, device=device)
    mean, std = torch.full((3,), 0.5, device=device), torch.full((3,), 0.2, device=device)
    augment.augment(crops, torch.from_numpy(rows), mean, std)


def test_two_copies_take_a_batchs_draws_to_the_device(gpu: torch.device) -> None:
    augment_batch(gpu)
    with Launches() as launches, NoHostSync():
        augment_batch(gpu)
    assert launches.num_uploads == 2
    assert launches.names.count("index") == launches.names.count("index_copy_") == len(OPERATIONS)


def test_no_batch_uploads_a_constant(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor built from Python numbers on a GPU waits for it."""
    augment_batch(gpu)

    def build(*_args: Any, **_options: Any) -> None:
        raise AssertionError("uploaded a constant")

    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, build)
    augment_batch(gpu)
