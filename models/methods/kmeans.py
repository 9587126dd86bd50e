"""k-means by Euclidean distance, for methods whose images are all in one matrix (PCL, Local Aggregation, BoWNet).

`spherical_kmeans` in deepcluster.py is that of DeepCluster-v2: by cosine, each rank with rows of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.methods.clustering import iter_blocks
from reproduce.engine.distributed.collectives import all_reduce_sum, rank, world_size


class Clusters(NamedTuple):
    """Centroids `(K, D)`, and each row's cluster `(N,)` int64 and distance `(N,)` to its centroid."""

    centroids: Tensor
    labels: Tensor
    distances: Tensor


def nearest_rows(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index `(N,)` of the centroid nearest to each row, and the distance `(N,)`, block by block."""
    offsets = -centroids.square().sum(dim=1) / 2
    found = [torch.addmm(offsets, block, centroids.T).max(dim=1) for block in iter_blocks(rows, centroids)]
    scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return labels, (rows.square().sum(dim=1) - 2 * scores).clamp_min(0).sqrt()


def lloyd(
    rows: Tensor,
    centroids: Tensor,
    num_iterations: int,
    nearest: Callable[[Tensor, Tensor], Tensor],
    center: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return centroids `(K, D)` after some iterations of k-means; `rows` `(N, D)` are this rank's share of all rows.

    Each moves every centroid to the `center` of its rows, given their sums `(K, D)` and counts `(K, 1)`; a centroid
    without rows stays. `nearest` returns each row's centroid `(N,)`. Sums and counts, `(K, D + 1)`, are all-reduced.
    """
    for _ in range(num_iterations):
        labels = nearest(rows, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
        counts = torch.bincount(labels, minlength=len(centroids)).to(rows.dtype)
        totals = all_reduce_sum(torch.cat([sums, counts[:, None]], dim=1))
        sums, counts = totals[:, :-1], totals[:, -1:]
        centroids = torch.where(counts > 0, center(sums, counts), centroids)
    return centroids


def _mean(sums: Tensor, counts: Tensor) -> Tensor:
    return sums / counts.clamp_min(1)


@torch.no_grad()
def kmeans(rows: Tensor, start: Tensor, num_iterations: int) -> Clusters:
    """Cluster rows `(N, D)`, which are the same on every rank, from centroids `start` `(K, D)`; all in fp32 or more.

    Each iteration moves every centroid to the mean of its rows. Ranks share the rows.
    """
    first, last = (len(rows) * number // world_size() for number in (rank(), rank() + 1))
    mine = rows[first:last]
    with torch.autocast(rows.device.type, enabled=False):
        centroids = lloyd(mine, start, num_iterations, lambda rows, centroids: nearest_rows(rows, centroids)[0], _mean)
        everyone = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
        everyone[:, first:last] = torch.stack(nearest_rows(mine, centroids))
        labels, distances = all_reduce_sum(everyone)
        return Clusters(centroids, labels.long(), distances.to(rows.dtype))


def best_kmeans(
    rows: Tensor, num_clusters: int, num_iterations: int, num_restarts: int, seed: tuple[int, ...]
) -> Clusters:
    """Return the result with the least squared distances of `num_restarts` starts from random rows, drawn by `seed`."""
    found = []
    for restart in range(num_restarts):
        drawn = np.random.default_rng((*seed, restart)).permutation(len(rows))[:num_clusters]
        found.append(kmeans(rows, rows[torch.from_numpy(drawn).to(rows.device)], num_iterations))
    return min(found, key=lambda clusters: float(clusters.distances.square().sum()))
