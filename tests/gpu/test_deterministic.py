"""Steps of every method and of DETR use operations only that have a deterministic version on CUDA.

`cluster.deterministic=true` ends a run at any other. On a CPU, the operations are compared with torch's list.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evals.coco_detr.detector import Detr
from evals.coco_detr.protocol import detr_loss
from tests.gpu.test_detectors import SIZE, WEIGHTS, detr_batch
from tests.gpu.trainings import CONFIGS, STEPS_PER_EPOCH, build_training
from tests.networks import random_trunk

REFUSED = (
    *("nll_loss2d_forward", "nll_loss2d_backward", "histc", "put_", "_ctc_loss_backward"),
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *("reflection_pad3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
)
"""Operations that raise an error under `torch.use_deterministic_algorithms`, by its documentation."""
REFUSED_OVERLOADS = ("median.dim", "nanmedian.dim")
FLOAT_SUMS = ("cumsum", "cumsum_", "cumprod")
"""Of floats, older versions of torch refuse them; of integers none does."""


class OnlyDeterministic(TorchDispatchMode):
    """A context in which an operation fails that has no deterministic version on CUDA."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        refused = name in REFUSED or str(func).removeprefix("aten.") in REFUSED_OVERLOADS
        refused |= name == "bincount" and any(each is not None for each in (*args[1:2], options.get("weights")))
        refused |= name.startswith("scatter_reduce") and "prod" in args
        if name in FLOAT_SUMS:
            refused |= (options.get("dtype") or args[0].dtype).is_floating_point
        assert not refused, f"{func} has no deterministic version on CUDA"
        return func(*args, **options)


@contextmanager
def only_deterministic(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if device.type != "cuda":
        with OnlyDeterministic():  # type: ignore[no-untyped-call]
            yield
        return
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses products without it
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_of_every_method(device: torch.device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Into the second epoch, at whose start the clustering methods label all images."""
    with only_deterministic(device, monkeypatch):
        build_training(name, device, num_batches=STEPS_PER_EPOCH + 1).losses(0, STEPS_PER_EPOCH + 1)


def test_a_step_of_detr(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Detr(random_trunk(0.125), SIZE, num_classes=5).to(device)
    with only_deterministic(device, monkeypatch):
        detr_loss(net, detr_batch(device, torch.float32), WEIGHTS, (0, 0)).backward()


def test_an_operation_without_a_deterministic_version_would_be_detected() -> None:
    found: list[Callable[[], object]] = [
        lambda: F.cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)),
        lambda: torch.zeros(2, dtype=torch.bool).cumsum(0, dtype=torch.float32),
        lambda: nn.AdaptiveAvgPool2d(2)(torch.zeros(1, 1, 4, 4, requires_grad=True)).sum().backward(),
        lambda: torch.zeros(2, 2).median(0),
        lambda: torch.bincount(torch.zeros(2, dtype=torch.int64), torch.zeros(2)),
    ]
    for operation in found:
        with pytest.raises(AssertionError, match="no deterministic"), OnlyDeterministic():  # type: ignore[no-untyped-call]
            operation()
