"""Processes: the one place that knows of ranks, collectives and devices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def device() -> torch.device:
    """This process' device: its own GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that a launcher (ours, or torchrun) started, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the run's files."""
    return rank() == 0


def barrier() -> None:
    """Wait for the other processes."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place and without gradient; the tensor itself in a single process."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Maximum over ranks, in place and without gradient; the tensor itself in a single process."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean over ranks, in place and without gradient."""
    return all_reduce_sum(tensor) / world_size()


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, of one shape, stacked along a new first dimension; without gradient."""
    if not dist.is_initialized():
        return tensor.detach().clone().unsqueeze(0)
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor.detach())
    return torch.stack(gathered)


def all_gather_differentiable(tensor: Tensor) -> Tensor:
    """The tensors `(n, ...)` of all ranks, of one shape, one below the other: `(world_size * n, ...)`; with gradient.

    A rank's gradient is the sum of what all ranks' losses ask of its rows, so the loss to be averaged over ranks (as
    DDP averages gradients) is each rank's own.
    """
    return _DifferentiableGather.apply(tensor) if dist.is_initialized() else tensor


def all_reduce_sum_differentiable(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over a group of ranks, with gradient."""
    return _DifferentiableSum.apply(tensor, group)


def any_rank(says: bool) -> bool:
    """Whether any rank says so; the same answer on every rank."""
    return says if world_size() == 1 else bool(all_reduce_max(torch.tensor(float(says), device=device())).item())


def union(names: set[str]) -> set[str]:
    """The names of all ranks together; a collective."""
    if not dist.is_initialized():
        return names
    of_ranks: list[Any] = [None] * world_size()
    dist.all_gather_object(of_ranks, names)
    return set[str]().union(*of_ranks)


class _DifferentiableSum(torch.autograd.Function):
    """Sum over a group of ranks, with its gradient: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _DifferentiableGather(torch.autograd.Function):
    """The rows of all ranks, with their gradient: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return all_gather(tensor.contiguous()).flatten(0, 1)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone()).chunk(world_size())[rank()]
