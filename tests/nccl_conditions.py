"""NCCL's conditions that gloo does not have: contiguous tensors, and a process group that all ranks leave together."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist

COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "reduce_scatter",
    "reduce_scatter_tensor", "gather", "scatter", "all_to_all", "all_to_all_single",
)  # fmt: skip


def require_contiguous(collective: Callable[..., Any]) -> Callable[..., Any]:
    """Return a collective that raises `ValueError` at a tensor that is not contiguous, as NCCL does."""

    @wraps(collective)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            for tensor in argument if isinstance(argument, list) else [argument]:
                if isinstance(tensor, torch.Tensor) and not tensor.is_contiguous():
                    raise ValueError(
                        f"{collective.__name__}: Tensors must be contiguous; strides are {tensor.stride()} "
                        f"for shape {tuple(tensor.shape)}"
                    )
        return collective(*args, **kwargs)

    return checked


def leave_together(destroy: Callable[..., None]) -> Callable[..., None]:
    """Return a `destroy_process_group` that waits for all ranks, as NCCL's destruction of a communicator may."""

    @wraps(destroy)
    def wait_and_destroy(*args: Any, **kwargs: Any) -> None:
        dist.barrier()
        destroy(*args, **kwargs)

    return wait_and_destroy


def impose_conditions() -> None:
    """Hold this process to NCCL's conditions from now on. For rank processes of tests."""
    for name in COLLECTIVES:
        setattr(dist, name, require_contiguous(getattr(dist, name)))
    dist.destroy_process_group = leave_together(dist.destroy_process_group)
