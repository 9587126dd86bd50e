"""Estimate the memory of a training step on each GPU, on any machine, and refuse a step that its GPU can't hold.

The forward pass runs on fake tensors, which have shapes and dtypes only, and the tensors that it saves for the backward
pass are counted. Convolution workspaces, the allocator's fragmentation and NCCL's buffers are not included.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # the only way to get autocast's dtypes, too

from reproduce.engine.distributed.collectives import device
from reproduce.engine.precision import autocast
from reproduce.errors import UserError

SGD_BYTES_PER_WEIGHT = 16
"""fp32: the weight, its gradient, its momentum, and its share of DDP's buckets."""
ADAM_BYTES_PER_WEIGHT = 20
"""One more moment than SGD."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one process, in GB (1e9 bytes)."""

    images_per_gpu: int
    weights_gb: float
    activations_gb: float

    @property
    def sum_gb(self) -> float:
        """The sum of weights and activations."""
        return self.weights_gb + self.activations_gb


def estimate_step(
    images_per_gpu: int,
    precision: str,
    build: Callable[[], tuple[nn.Module, Callable[[], object]]],
    bytes_per_weight: int = SGD_BYTES_PER_WEIGHT,
) -> MemoryEstimate:
    """Estimate the memory at the end of a forward pass. `build` returns the network, and a function that runs it."""
    with FakeTensorMode():
        net, forward = build()
        saved: dict[int, torch.UntypedStorage] = {}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage  # keeps it alive, so that no other gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast(precision, "cpu"):
            forward()
        for tensor in net.state_dict(keep_vars=True).values():
            saved.pop(tensor.untyped_storage()._cdata, None)
        num_weights = sum(weight.numel() for weight in net.parameters())
    return MemoryEstimate(images_per_gpu, bytes_per_weight * num_weights / 1e9, sum(map(len, saved.values())) / 1e9)


def gpu_memory_gb() -> float | None:
    """Return the memory of this process's GPU in GB (1e9 bytes); None on a CPU."""
    return torch.cuda.get_device_properties(device()).total_memory / 1e9 if device().type == "cuda" else None


def require_gpu_memory(estimate: Callable[[], MemoryEstimate]) -> None:
    """Raise `UserError` if this process's GPU can't hold a step of a detector. On a CPU nothing is estimated."""
    available_gb = gpu_memory_gb()
    if available_gb is None:
        return
    needed = estimate()
    if needed.sum_gb > available_gb:
        raise UserError(
            f"{needed.images_per_gpu} images on each GPU need {needed.sum_gb:.0f} GB of its memory (docs/memory.md), "
            f"and this one has {available_gb:.0f} GB: take more GPUs by CLUSTER_OPTIONS=detector_processes=N (by hand: "
            "--nproc-per-node N), or precision=bf16"
        )
