"""Processes: the one place that knows of ranks, collectives and devices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def device() -> torch.device:
    """This process' device: its own GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun started, and leave them at the end; alone, do nothing."""
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


def any_rank(says: bool) -> bool:
    """Whether any rank says so; the same answer on every rank."""
    return says if world_size() == 1 else bool(all_reduce_max(torch.tensor(float(says), device=device())).item())


def shared(net: nn.Module) -> nn.Module:
    """`net` as all ranks train it: BatchNorm over the whole batch, gradients averaged. `net` itself when alone."""
    if not dist.is_initialized():
        return net
    net = _sync_batchnorm(net)
    return DistributedDataParallel(net, device_ids=[device().index] if device().type == "cuda" else None)


def _sync_batchnorm(net: nn.Module) -> nn.Module:
    if device().type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = CpuSyncBatchNorm
    return net


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batch of all ranks on a CPU, where torch's own SyncBatchNorm refuses to run.

    The same statistics and running averages as `nn.BatchNorm` over the gathered batch; ranks may hold unequal batches.
    """

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
        totals = differentiable.all_reduce(totals)
        count = totals[-1:].detach()
        mean = totals[:-1] / count
        centered = input - mean.view(shape)
        variance = differentiable.all_reduce(centered.square().sum(axes)) / count
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
