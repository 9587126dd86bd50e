"""BatchNorm statistics over groups of a batch's images, independent of the number of processes; and DDP."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from reproduce.data.pipeline.sampler import require_even_shares
from reproduce.engine.distributed.collectives import all_reduce_sum_differentiable, device, subgroup, world_size
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import UserError, did_you_mean

SYNC_BATCHNORM = ("torch", "apex")
"""Implementations of BatchNorm over several GPUs, with equal results. CPUs always use our own `CpuSyncBatchNorm`."""


@dataclass(frozen=True)
class BatchNormGroups:
    """Which images share BatchNorm statistics: several ranks' batches, or part of one rank's."""

    ranks: int
    """Ranks whose batches form one group."""
    per_rank: int = 1
    """Groups that one rank's batch is divided into; more than 1 only if `ranks` is 1."""
    images: int | None = None
    """Images per group if a rank has several groups, else None."""


def batchnorm_groups(batch_size: int, group_size: int | None) -> BatchNormGroups:
    """Return the groups that give BatchNorm statistics over `group_size` images (None: over the global batch).

    Raises `UserError` unless a rank's share of the batch is a multiple of a group or an equal part of one.
    """
    require_even_shares(batch_size, world_size())
    images = group_size or batch_size
    share = batch_size // world_size()
    if batch_size % images or (images % share and share % images):
        raise UserError(
            f"BatchNorm over {images} images can't be had with {world_size()} processes of {share} images each: "
            "a share has to be a multiple or a part of a group, and the batch a multiple; change "
            "cluster.num_processes or batch_size, or take the whole batch by network.batchnorm_group_size=null"
        )
    return BatchNormGroups(images // share) if images >= share else BatchNormGroups(1, share // images, images)


def wrap_for_distributed(
    net: nn.Module, groups: BatchNormGroups | None = None, sync_batchnorm: str = "torch"
) -> nn.Module:
    """Convert the BatchNorm of `net` to `groups` (default: all ranks together) and wrap it in DDP.

    Returns `net` itself in a single process. Raises `UserError` as `validate_sync_batchnorm` does.
    """
    net = convert_batchnorm(net, groups or BatchNormGroups(world_size()), sync_batchnorm)
    if not dist.is_initialized():
        return net
    return DistributedDataParallel(net, device_ids=[device().index] if device().type == "cuda" else None)


def validate_sync_batchnorm(implementation: str) -> None:
    """Raise `UserError` if a SyncBatchNorm implementation is unknown, not installed, or does not run here."""
    if implementation not in SYNC_BATCHNORM:
        raise UserError(
            f"unknown cluster.sync_batchnorm {implementation!r}: {did_you_mean(implementation, SYNC_BATCHNORM)}"
        )
    if implementation != "apex":
        return
    if device().type != "cuda":
        raise UserError("cluster.sync_batchnorm=apex needs GPUs; use torch, which gives the same numbers anywhere")
    try:
        from apex.parallel import convert_syncbn_model  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"cluster.sync_batchnorm=apex: apex with its SyncBatchNorm is not installed ({error}); use the CUDA image "
            "(apex 25.05 was the last version with it), or use torch, which gives the same numbers"
        ) from error


def convert_batchnorm(net: nn.Module, groups: BatchNormGroups, sync_batchnorm: str = "torch") -> nn.Module:
    """Make every BatchNorm of `net` compute its statistics over `groups`, in place, and return `net`.

    Raises `UserError` as `validate_sync_batchnorm` does.
    """
    validate_sync_batchnorm(sync_batchnorm)
    if groups.images:
        return _to_grouped_batchnorm(net, groups.per_rank, groups.images)
    return _to_sync_batchnorm(net, groups.ranks, sync_batchnorm) if dist.is_initialized() else net


def uses_global_stats(net: nn.Module) -> bool:
    """Return whether BatchNorm in training uses the statistics of all ranks' images together."""
    norm = next(module for module in net.modules() if isinstance(module, _BatchNorm))
    group = getattr(norm, "process_group", None)
    return not isinstance(norm, GroupedBatchNorm) and (dist.get_world_size(group) if group else 1) == world_size()


def _to_grouped_batchnorm(net: nn.Module, num_groups: int, images: int) -> nn.Module:
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = GroupedBatchNorm
            module.num_groups, module.images = num_groups, images  # type: ignore[assignment]
    return net


def _to_sync_batchnorm(net: nn.Module, num_ranks: int, implementation: str) -> nn.Module:
    group = subgroup(num_ranks)
    if implementation == "apex":
        from apex.parallel import convert_syncbn_model

        converted: nn.Module = convert_syncbn_model(net, process_group=group)
        return converted
    if device().type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net, group)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = CpuSyncBatchNorm
            module.process_group = group  # type: ignore[assignment]
    return net


class _AnyShape(_BatchNorm):
    """BatchNorm for inputs `(N, C)` to `(N, C, D, H, W)`; subclasses replace its training mode."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")


class GroupedBatchNorm(_AnyShape):
    """BatchNorm over groups of a rank's images, as if each group were on a rank of its own.

    The input is `(num_crops * num_groups * images, C, ...)`, crop by crop; a group has the same images of every crop.
    The running statistics are the first group's, as rank 0's would be with one group per rank.
    Channels-last inputs give channels-last outputs and gradients: another layout would make every convolution convert.
    """

    num_groups: int
    images: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `(N, C, ...)` per group and channel."""
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        running = (self.running_mean, self.running_var)
        assert len(input) % (self.num_groups * self.images) == 0, f"{len(input)} rows are no whole groups"
        shares = input.split(self.images)  # crop by crop; unlike `unflatten`, split and cat keep channels-last memory
        normalized = []
        for number in range(self.num_groups):
            group = torch.cat(shares[number :: self.num_groups])
            rows = F.batch_norm(group, *running, self.weight, self.bias, True, self.momentum, self.eps)
            normalized.append(rows.split(self.images))
            running = (None, None)
        return torch.cat([share for crop in zip(*normalized, strict=True) for share in crop])


class CpuSyncBatchNorm(_AnyShape):
    """BatchNorm over the batches of a group of ranks on CPUs, where torch's SyncBatchNorm does not run.

    Gives the statistics and running statistics of `nn.BatchNorm` over the gathered batch, in fp32 even if the input is
    in half precision. Ranks may have batches of different sizes.
    """

    process_group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `(N, C, ...)` per channel. A collective in training."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = at_least_fp32(input)
        count = x.new_tensor([x.numel() / x.shape[1]])
        totals = torch.cat([x.sum(axes), count])
        totals = all_reduce_sum_differentiable(totals, self.process_group)
        count = totals[-1:].detach()
        mean = totals[:-1] / count
        centered = x - mean.view(shape)
        variance = all_reduce_sum_differentiable(centered.square().sum(axes), self.process_group) / count
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
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)
