"""SeLa-v2: labels that spread all images evenly over trained prototypes, by Sinkhorn-Knopp (D, equation 6)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.clustering import Clustering, ClusteringConfig, blocks
from models.networks.heads import MultiCropNet
from reproduce.engine.distributed.collectives import all_reduce_sum, is_main
from reproduce.errors import TrainingFailed

NEAR = 10
"""Times the tolerance. Where a prototype is all but empty, the last digits take thousands of iterations."""


@torch.no_grad()
def equal_labels(
    rows: Tensor, prototypes: Tensor, num_global_rows: int, epsilon: float, tolerance: float, max_iterations: int
) -> Tensor:
    """The most likely prototype `(N,)` of each unit row `(N, D)` where every prototype gets the same share of all rows.

    Sinkhorn-Knopp on exp(cosine / epsilon), in blocks: only one factor per prototype is kept, the scores are calculated
    again in each iteration. It ends when every prototype's share is right to `tolerance` (relative); the soft
    assignments are equal then, and the labels are their maxima. Rows are those of all ranks; K sums are all-reduced.

    Raises `TrainingFailed` where `max_iterations` do not get near it.
    """
    with torch.autocast(rows.device.type, enabled=False):
        factors, error = torch.ones(len(prototypes), device=rows.device), torch.tensor(math.inf)
        for _ in range(max_iterations):
            shares = torch.zeros_like(factors)
            for block in blocks(rows, prototypes):
                assignments = torch.exp((F.linear(block, prototypes) - 1) / epsilon) * factors
                shares += (assignments / assignments.sum(dim=1, keepdim=True)).sum(dim=0)
            shares = all_reduce_sum(shares) * len(prototypes) / num_global_rows
            error = (shares - 1).abs().max()
            if error <= tolerance:
                break
            factors = factors / shares.clamp_min(torch.finfo(shares.dtype).tiny)
            factors = factors / factors.max()
        else:
            _say_how_near(float(error), tolerance, max_iterations)
        weighted = factors.log() * epsilon
        return torch.cat([(F.linear(b, prototypes) + weighted).argmax(dim=1) for b in blocks(rows, prototypes)])


def _say_how_near(error: float, tolerance: float, max_iterations: int) -> None:
    """Raise `TrainingFailed`, unless a hair's breadth is lacking: that is no reason to end a run."""
    how_near = (
        f"SeLa-v2's assignments are not equal to {tolerance:g} after {max_iterations} iterations, but to {error:.2g}"
    )
    if not error <= NEAR * tolerance:
        raise TrainingFailed(f"{how_near}: raise method.epsilon, or method.max_sinkhorn_iterations")
    if is_main():
        print(how_near, flush=True)


@dataclass
class SelaConfig(ClusteringConfig):
    """conf/method/sela_v2.yaml."""

    epsilon: float
    sinkhorn_tolerance: float
    max_sinkhorn_iterations: int
    freeze_prototypes_epochs: float


class Sela(Clustering):
    """The method as the loop uses it."""

    collapse_hints = "method.epsilon=0.03 (sharper assignments), a longer method.freeze_prototypes_epochs"

    def __init__(self, config: SelaConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        self.config = config
        self.freeze_prototypes_steps = math.ceil(config.freeze_prototypes_epochs * num_images / batch_size)
        self.plateau_grace_epochs = config.freeze_prototypes_epochs

    def label(self, head: int, rows: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Spread a bank evenly over the head's prototypes."""
        config, prototypes = self.config, F.normalize(self.heads[head].float(), dim=1)
        limits = config.epsilon, config.sinkhorn_tolerance, config.max_sinkhorn_iterations
        return equal_labels(rows, prototypes, self.bank.num_global_rows, *limits)

    @torch.no_grad()
    def before_forward(self) -> None:
        """Put the prototypes back on the unit sphere."""
        for prototypes in self.heads:
            prototypes.copy_(F.normalize(prototypes, dim=1))

    def after_backward(self, step: int) -> None:
        """Keep the prototypes where they are while they are frozen."""
        if step < self.freeze_prototypes_steps:
            for prototypes in self.heads:
                prototypes.grad = None
