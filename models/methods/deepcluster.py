"""DeepCluster-v2: prototypes are the centroids of spherical k-means on the last embeddings (D, equations 3, 5)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.clustering import Clustering, ClusteringConfig, blocks
from models.networks.heads import MultiCropNet
from reproduce.engine.distributed.collectives import all_reduce_sum


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Index `(N,)` of the centroid with the highest cosine, block by block."""
    # `max` is a third faster than `argmax` on a CPU, and so near the speed of the matrix product itself.
    return torch.cat([F.linear(block, centroids).max(dim=1).indices for block in blocks(rows, centroids)])


@torch.no_grad()
def spherical_kmeans(rows: Tensor, centroids: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Centroids `(K, D)` and labels `(N,)` of unit rows `(N, D)`, from given unit centroids; all in fp32.

    Each iteration moves every centroid to the direction of its rows' mean; one without rows stays. Where a process
    group stands, the rows are those of all ranks: sums and counts, (K, D + 1), are all-reduced.
    """
    with torch.autocast(rows.device.type, enabled=False):
        for _ in range(num_iterations):
            labels = nearest(rows, centroids)
            sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
            counts = torch.bincount(labels, minlength=len(centroids)).to(rows.dtype)
            totals = all_reduce_sum(torch.cat([sums, counts[:, None]], dim=1))
            centroids = torch.where(totals[:, -1:] > 0, F.normalize(totals[:, :-1], dim=1), centroids)
        return centroids, nearest(rows, centroids)


@dataclass
class DeepClusterConfig(ClusteringConfig):
    """conf/method/deepcluster_v2.yaml."""

    num_kmeans_iterations: int


class DeepCluster(Clustering):
    """The method as the loop uses it. Prototypes follow from the banks: SGD never moves them."""

    collapse_hints = "fewer method.num_prototypes"

    def __init__(self, config: DeepClusterConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        self.num_kmeans_iterations = config.num_kmeans_iterations
        for prototypes in self.heads:
            prototypes.requires_grad_(False)

    def label(self, head: int, rows: Tensor, epoch: int) -> Tensor:
        """Cluster a bank anew, and let the head's prototypes be the centroids.

        They start at random rows; the released code takes those of rank 0, here they are of all ranks, so that the
        number of processes changes nothing.
        """
        prototypes = self.heads[head]
        drawn = np.random.default_rng((self.sampler.seed, epoch, head)).permutation(self.bank.num_global_rows)
        chosen = torch.from_numpy(drawn[: len(prototypes)]).to(rows.device)
        start = self.bank.rows(head % self.num_crops, chosen)
        centroids, labels = spherical_kmeans(rows, start, self.num_kmeans_iterations)
        prototypes.copy_(centroids)
        return labels
