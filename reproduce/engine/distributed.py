"""Processes: the one place that knows of ranks, collectives and devices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reproduce.errors import UserError, nearest

SYNC_BATCHNORM = ("torch", "apex")
"""Implementations of BatchNorm over several GPUs; the numbers are the same. On a CPU there is one, our own."""


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


def batchnorm_ranks(batch_size: int, batchnorm_images: int | None) -> int:
    """How many ranks share BatchNorm's statistics so that these are of `batchnorm_images` images (None: of the batch).

    Raises `UserError` where the ranks' shares of a batch can't be put together to that.
    """
    images = batchnorm_images or batch_size
    share = batch_size // world_size()
    if images % share or batch_size % images:
        raise UserError(
            f"BatchNorm over {images} images can't be had with {world_size()} processes of {share} images each: "
            f"cluster.num_processes={max(1, batch_size // images)} or a multiple of it gives it, "
            "network.batchnorm_images=null takes the whole batch"
        )
    return images // share


def shared(net: nn.Module, num_batchnorm_ranks: int, sync_batchnorm: str = "torch") -> nn.Module:
    """`net` as all ranks train it: BatchNorm over groups of ranks, gradients averaged. `net` itself when alone.

    `sync_batchnorm` is one of `SYNC_BATCHNORM`; `UserError` where it is not installed, or does not run here.
    """
    net = synchronized(net, num_batchnorm_ranks, sync_batchnorm)
    if not dist.is_initialized():
        return net
    return DistributedDataParallel(net, device_ids=[device().index] if device().type == "cuda" else None)


def check_sync_batchnorm(implementation: str) -> None:
    """Raise `UserError` where an implementation of SyncBatchNorm is unknown, not installed, or does not run here."""
    if implementation not in SYNC_BATCHNORM:
        raise UserError(
            f"there is no cluster.sync_batchnorm {implementation!r}: {nearest(implementation, SYNC_BATCHNORM)}"
        )
    if implementation != "apex":
        return
    if device().type != "cuda":
        raise UserError("cluster.sync_batchnorm=apex needs GPUs; torch's gives the same numbers anywhere")
    try:
        from apex.parallel import convert_syncbn_model  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"cluster.sync_batchnorm=apex: apex with its SyncBatchNorm is not installed ({error}); it is in the CUDA "
            "image (apex 25.05 was the last that had it), and cluster.sync_batchnorm=torch gives the same numbers"
        ) from error


def synchronized(net: nn.Module, num_batchnorm_ranks: int, sync_batchnorm: str = "torch") -> nn.Module:
    """`net`, itself changed: BatchNorm over groups of ranks. Errors as for `shared`."""
    check_sync_batchnorm(sync_batchnorm)
    return _sync_batchnorm(net, num_batchnorm_ranks, sync_batchnorm) if dist.is_initialized() else net


def _sync_batchnorm(net: nn.Module, num_ranks: int, implementation: str) -> nn.Module:
    if implementation == "apex":
        from apex.parallel import convert_syncbn_model, create_syncbn_process_group

        converted: nn.Module = convert_syncbn_model(net, process_group=create_syncbn_process_group(num_ranks))
        return converted
    group, _ = dist.new_subgroups(num_ranks)
    if device().type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net, group)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = CpuSyncBatchNorm
            module.process_group = group  # type: ignore[assignment]
    return net


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


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of a group of ranks on a CPU, where torch's own SyncBatchNorm refuses to run.

    The same statistics and running averages as `nn.BatchNorm` over the gathered batch; ranks may hold unequal batches.
    """

    process_group: dist.ProcessGroup

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, ...)` per channel."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = input.new_tensor([input.numel() / input.shape[1]])
        totals = torch.cat([input.sum(axes), count])
        totals = _DifferentiableSum.apply(totals, self.process_group)
        count = totals[-1:].detach()
        mean = totals[:-1] / count
        centered = input - mean.view(shape)
        variance = _DifferentiableSum.apply(centered.square().sum(axes), self.process_group) / count
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalized = centered * torch.rsqrt(variance + self.eps).view(shape)
        return normalized * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalized
