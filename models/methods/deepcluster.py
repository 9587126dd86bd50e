"""DeepCluster-v2: prototypes are the centroids of spherical k-means on the last embeddings (D, equations 3 and 5)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.clustering import Clustering, ClusteringConfig, iter_blocks
from models.methods.kmeans import lloyd
from models.networks.heads import MultiCropNet


def nearest_centroids(rows: Tensor, centroids: Tensor) -> Tensor:
    """Return the index `(N,)` of the centroid with the highest cosine for each unit row `(N, D)`, block by block."""
    # On a CPU, `max` is a third faster than `argmax`, and so nearly as fast as the matrix product alone.
    return torch.cat([F.linear(block, centroids).max(dim=1).indices for block in iter_blocks(rows, centroids)])


@torch.no_grad()
def spherical_kmeans(rows: Tensor, centroids: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Return centroids `(K, D)` and labels `(N,)` of unit rows `(N, D)`, starting from unit centroids; all in fp32.

    Each iteration moves every centroid to the direction of the mean of its rows. With a process group, the rows are
    those of all ranks.
    """
    with torch.autocast(rows.device.type, enabled=False):
        centroids = lloyd(rows, centroids, num_iterations, nearest_centroids, lambda sums, _: F.normalize(sums, dim=1))
        return centroids, nearest_centroids(rows, centroids)


@dataclass
class DeepClusterConfig(ClusteringConfig):
    """conf/method/deepcluster_v2.yaml."""

    num_kmeans_iterations: int


class DeepCluster(Clustering):
    """DeepCluster-v2 as a method of the training loop. Prototypes come from the banks and are never trained."""

    collapse_hints = "fewer method.num_prototypes"

    def __init__(self, config: DeepClusterConfig, net: MultiCropNet, num_images: int, batch_size: int) -> None:
        super().__init__(config, net, num_images, batch_size)
        self.num_kmeans_iterations = config.num_kmeans_iterations
        for prototypes in self.heads:
            prototypes.requires_grad_(False)

    def assign_labels(self, head: int, rows: Tensor, epoch: int) -> Tensor:
        """Cluster a bank and make the centroids the head's prototypes; return the clusters as labels.

        k-means starts from random rows of all ranks, so that the result does not depend on the number of processes; the
        released code draws them from rank 0.
        """
        prototypes = self.heads[head]
        drawn = np.random.default_rng((self.sampler.seed, epoch, head)).permutation(self.bank.num_global_rows)
        chosen = torch.from_numpy(drawn[: len(prototypes)]).to(rows.device)
        start = self.bank.rows(head % self.num_crops, chosen)
        centroids, labels = spherical_kmeans(rows, start, self.num_kmeans_iterations)
        prototypes.copy_(centroids)
        return labels
