"""k-means by Euclidean distance against scikit-learn, and its restarts."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from models.methods import clustering
from models.methods.kmeans import best_kmeans, kmeans


def points(num: int) -> Tensor:
    """Points around four corners, of lengths that differ."""
    draw = torch.Generator().manual_seed(0)
    corners = 3 * torch.eye(6)[torch.randint(4, (num,), generator=draw)]
    return corners + torch.randn(num, 6, generator=draw)


@pytest.mark.parametrize("block", [2**20, 40])
def test_kmeans_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setitem(clustering.BLOCK_SCORES, "cpu", block)
    rows = points(200)
    found = kmeans(rows, rows[:4], 50)
    oracle = KMeans(4, init=rows[:4].numpy(), n_init=1, max_iter=50, tol=0).fit(rows.numpy())
    assert found.labels.tolist() == oracle.labels_.tolist()
    np.testing.assert_allclose(found.centroids, oracle.cluster_centers_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.distances, oracle.transform(rows.numpy()).min(axis=1), rtol=1e-4)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    rows, away = points(50), torch.full((1, 6), -100.0)
    found = kmeans(rows, torch.cat([rows[:2], away]), 3)
    assert 2 not in found.labels
    assert torch.equal(found.centroids[2:], away)


def test_the_best_of_several_starts_is_taken() -> None:
    rows = points(200)

    def objective(num_restarts: int) -> float:
        found = best_kmeans(rows, 5, 3, num_restarts, seed=(0, 1))
        return float(found.distances.square().sum())

    objectives = [objective(num) for num in (1, 2, 5, 10)]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[0] > objectives[-1]
    assert objective(5) == objectives[2]
