"""SeLa-v2: labels distribute all images evenly over trained prototypes, by Sinkhorn-Knopp (D, equation 6)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.clustering import Clustering, ClusteringConfig, iter_blocks
from models.networks.heads import MultiCropNet
from reproduce.engine.distributed.collectives import all_reduce_sum, is_main
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import TrainingFailed

ACCEPTED_ERROR = 10
"""Largest accepted error, in units of the tolerance: for a nearly empty prototype, the last digits take thousands of
iterations."""


@torch.no_grad()
def balanced_labels(
    rows: Tensor, prototypes: Tensor, num_global_rows: int, epsilon: float, tolerance: float, max_iterations: int
) -> Tensor:
    """Return the most likely prototype `(N,)` of each unit row `(N, D)` if every prototype gets an equal share of rows.

    Sinkhorn-Knopp on exp(cosine / epsilon), in blocks: only one factor per prototype is stored, and the scores are
    recomputed in each iteration. It stops when every prototype's share is right within `tolerance` (relative). Then the
    soft assignments are balanced; the labels are their maxima. The rows are those of all ranks, `num_global_rows` in
    total; K column sums are all-reduced in each iteration.

    Raises `TrainingFailed` if `max_iterations` leave an error of more than `ACCEPTED_ERROR` times the tolerance.
    """
    with torch.autocast(rows.device.type, enabled=False):
        factors, error = torch.ones(len(prototypes), device=rows.device), torch.tensor(math.inf)
        for _ in range(max_iterations):
            shares = torch.zeros_like(factors)
            for block in iter_blocks(rows, prototypes):
                assignments = torch.exp((F.linear(block, prototypes) - 1) / epsilon) * factors
                shares += (assignments / assignments.sum(dim=1, keepdim=True)).sum(dim=0)
            shares = all_reduce_sum(shares) * len(prototypes) / num_global_rows
            error = (shares - 1).abs().max()
            if error <= tolerance:
                break
            factors = factors / shares.clamp_min(torch.finfo(shares.dtype).tiny)
            factors = factors / factors.max()
        else:
            _check_convergence(float(error), tolerance, max_iterations)
        weighted = factors.log() * epsilon
        return torch.cat([(F.linear(b, prototypes) + weighted).argmax(dim=1) for b in iter_blocks(rows, prototypes)])


def _check_convergence(error: float, tolerance: float, max_iterations: int) -> None:
    """Raise `TrainingFailed` unless the error is close to the tolerance, which is no reason to end a run."""
    message = (
        f"SeLa-v2's assignments are balanced to {error:.2g}, not to {tolerance:g}, after {max_iterations} iterations"
    )
    if not error <= ACCEPTED_ERROR * tolerance:
        raise TrainingFailed(f"{message}: raise method.epsilon, or method.max_sinkhorn_iterations")
    if is_main():
        print(message, flush=True)


@dataclass
class SelaConfig(ClusteringConfig):
    """conf/method/sela_v2.yaml."""

    epsilon: float
    sinkhorn_tolerance: float
    max_sinkhorn_iterations: int
    freeze_prototypes_epochs: float


class Sela(Clustering):
    """SeLa-v2 as a method of the training loop."""

    collapse_hints = "method.epsilon=0.03 (sharper assignments), a longer method.freeze_prototypes_epochs"

    def __init__(self, config: SelaConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        self.config = config
        self.freeze_prototypes_steps = math.ceil(config.freeze_prototypes_epochs * num_images / batch_size)
        self.plateau_grace_epochs = config.freeze_prototypes_epochs

    def assign_labels(self, head: int, rows: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Distribute a bank evenly over the head's prototypes."""
        config, prototypes = self.config, F.normalize(at_least_fp32(self.heads[head]), dim=1)
        limits = config.epsilon, config.sinkhorn_tolerance, config.max_sinkhorn_iterations
        return balanced_labels(rows, prototypes, self.bank.num_global_rows, *limits)

    @torch.no_grad()
    def before_forward(self) -> None:
        """Normalize the prototypes, as the released code does before each forward pass."""
        for prototypes in self.heads:
            prototypes.copy_(F.normalize(prototypes, dim=1))

    def after_backward(self, step: int) -> None:
        """Drop the prototypes' gradients while they are frozen."""
        if step < self.freeze_prototypes_steps:
            for prototypes in self.heads:
                prototypes.grad = None
