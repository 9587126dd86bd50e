"""Ranks, devices and collectives. In a single process, each collective returns what one rank alone would get."""

import datetime
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from reproduce.errors import UserError
from reproduce.system import SHARED_GPUS

WAIT_LOG_SECONDS = 60.0
"""A wait for other ranks is logged once it takes so long."""


def device() -> torch.device:
    """Return this process's device: its own GPU (by LOCAL_RANK), or the CPU if there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def process_group(gpus_per_process: int = 0, timeout_minutes: float = 120) -> Iterator[None]:
    """Join the process group of a launcher (ours, or torchrun); leave it after success. A no-op for WORLD_SIZE=1.

    A rank that waits for longer than the timeout ends the run; NCCL's own ten minutes are too short while rank 0 reads
    a list of files or another rank fits classifiers.

    Raises `UserError` as `validate_gpus` does, and unless all ranks have a GPU or none has.
    """
    validate_gpus(gpus_per_process)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    store, own_rank, num_ranks = next(rendezvous("env://"))
    kind = device().type
    require_same_device(store, own_rank, num_ranks, kind)
    if kind == "cuda":
        torch.cuda.set_device(device())
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout, store=store, rank=own_rank, world_size=num_ranks)
    yield
    # After an error, the group is left as it is: NCCL may destroy a communicator only together with the other ranks,
    # and these wait in a collective for this one, whose launcher waits for its end. The end of the process aborts it.
    dist.destroy_process_group()


def validate_gpus(gpus_per_process: int) -> None:
    """Raise `UserError` if GPUs were requested and there is none, or if there are fewer GPUs than processes.

    `gpus_per_process` is what the config requests: 1, or 0 for a GPU only if there is one.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus_per_process and not num_gpus:
        raise UserError(
            f"cluster.gpus_per_process={gpus_per_process}, but CUDA finds no GPU on {socket.gethostname()}: "
            f"{_how_to_get_gpus()}, or run on CPUs by cluster.gpus_per_process=0"
        )
    if os.environ.get(SHARED_GPUS) and not num_gpus:
        raise UserError(
            f"nvidia-smi lists GPUs on {socket.gethostname()}, and torch can use none: {_how_to_get_gpus()}; "
            "CUDA_VISIBLE_DEVICES= in front of the command runs on the processor"
        )
    if num_gpus and local_rank >= num_gpus:
        raise UserError(
            f"process {local_rank + 1} of {socket.gethostname()} has no GPU of its own: CUDA finds {num_gpus} (of "
            "several MIG instances only one); start one process per GPU (of a detector by "
            "CLUSTER_OPTIONS=detector_processes=N), or hide them by CUDA_VISIBLE_DEVICES="
        )


def _how_to_get_gpus() -> str:
    """Return what to do where torch finds no GPU."""
    if torch.version.cuda is None:
        return "this torch is a CPU build: `make clean`, then the same command without TORCH=cpu installs the other"
    return "check the driver, which may be too old (make doctor), and the job's GPUs"


def require_same_device(store: Store, own_rank: int, num_ranks: int, kind: str) -> None:
    """Raise `UserError` on every rank unless all have the same kind of device, "cuda" or "cpu". A collective."""
    store.set(f"device_of_rank/{own_rank}", kind)
    kinds = [store.get(f"device_of_rank/{each}").decode() for each in range(num_ranks)]
    if store.add("devices_read", 1) == num_ranks:
        store.set("all_devices_read", "")
    if own_rank == 0:
        store.get("all_devices_read")  # rank 0 holds the store, and must not exit before all have read it
    if len(set(kinds)) > 1:
        without = [str(each) for each, kind in enumerate(kinds) if kind == "cpu"]
        raise UserError(
            f"CUDA finds no GPU for rank {', '.join(without)} of {num_ranks}, but one for each other rank: check the "
            "machines' drivers (make doctor), or hide all GPUs by CUDA_VISIBLE_DEVICES="
        )


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is rank 0, which writes the run's files."""
    return rank() == 0


def subgroup(num_ranks: int) -> dist.ProcessGroup:
    """Return this rank's group, of `num_ranks` neighbouring ranks, with the timeout of the whole. A collective."""
    assert dist.group.WORLD is not None
    timeout = dist.group.WORLD._get_backend(device()).options._timeout  # torch's default would be the backend's
    group, _ = dist.new_subgroups(num_ranks, timeout=timeout)
    return group


def barrier() -> None:
    """Wait for all ranks. A long wait is logged."""
    if dist.is_initialized():
        with _log_long_wait(f"rank {rank()} waits for the other ranks"):
            dist.barrier()


@contextmanager
def others_wait(task: str) -> Iterator[None]:
    """Enter work that this rank does alone, `task` ("writes a checkpoint"); log it if the other ranks wait for long."""
    if world_size() == 1:
        yield
        return
    with _log_long_wait(f"the other {world_size() - 1} ranks wait for rank {rank()}, which {task}"):
        yield


@contextmanager
def _log_long_wait(message: str) -> Iterator[None]:
    """Print who waits for whom, if the block takes longer than `WAIT_LOG_SECONDS`."""
    limit = "the run ends after cluster.collective_timeout_minutes"
    timer = threading.Timer(WAIT_LOG_SECONDS, print, [f"{message}; {limit}"], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place and without gradient. Returns `tensor`."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Take the maximum over ranks, in place and without gradient. Returns `tensor`."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Average over ranks, without gradient. Overwrites `tensor` with the sum; returns a new tensor."""
    return all_reduce_sum(tensor) / world_size()


def all_gather(tensor: Tensor) -> Tensor:
    """Stack all ranks' tensors of equal shape along a new first dimension, `(world_size, ...)`; without gradient."""
    if not dist.is_initialized():
        return tensor.detach().clone().unsqueeze(0)
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor.detach())
    return torch.stack(gathered)


def all_gather_differentiable(tensor: Tensor) -> Tensor:
    """Concatenate all ranks' tensors `(n, ...)` of equal shape to `(world_size * n, ...)`, with gradient.

    The gradient of a rank's rows is the sum over all ranks' losses. So let each rank compute its own loss and average
    the losses over ranks, as DDP averages gradients.
    """
    return _DifferentiableGather.apply(tensor) if dist.is_initialized() else tensor


def all_reduce_sum_differentiable(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over a group of ranks, with gradient. Returns a new tensor."""
    return _DifferentiableSum.apply(tensor, group)


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is true on any rank; the same answer on every rank. A collective; a long wait is logged."""
    if world_size() == 1:
        return flag
    with _log_long_wait(f"rank {rank()} waits for the other ranks"):
        return bool(all_reduce_max(torch.tensor(float(flag), device=device())).item())


def gather_union(names: set[str]) -> set[str]:
    """Return the union of all ranks' sets, on every rank. A collective."""
    if not dist.is_initialized():
        return names
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, names)
    return set[str]().union(*gathered)


def _contiguous_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to contiguous memory, which NCCL requires; `clone()` alone keeps the strides of a permuted one."""
    return tensor.clone(memory_format=torch.contiguous_format)


class _DifferentiableSum(torch.autograd.Function):
    """Sum over a group of ranks. Its gradient is a sum, too: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = _contiguous_copy(tensor)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = _contiguous_copy(gradient)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _DifferentiableGather(torch.autograd.Function):
    """Gather the rows of all ranks. The backward pass sums all ranks' gradients and returns this rank's rows."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return all_gather(tensor.contiguous()).flatten(0, 1)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(_contiguous_copy(gradient)).chunk(world_size())[rank()]
