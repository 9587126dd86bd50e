"""Features, neighbors, k-means and balanced labels on the device, against double precision on the CPU."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evals import knn
from models.methods import clustering
from models.methods.deepcluster import nearest_centroids, spherical_kmeans
from models.methods.sela import balanced_labels
from models.networks.resnet import ResNet
from reproduce.config.schema import Normalize
from reproduce.data.datasets.image_folder import read_image_folder
from reproduce.data.pipeline.dataloader import center_crop_batches
from tests.gpu.trainings import assert_close_to

CPU = torch.device("cpu")
NEAR_TIE = 1e-5
"""Two cosines that differ by less may change places in fp32."""


def directions(num: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_features_of_center_crops(device: torch.device, data: Path) -> None:
    images = read_image_folder(data / "imagenet" / "val")
    torch.manual_seed(0)
    exact = ResNet(0.25).double().eval()
    found = copy.deepcopy(exact).to(device, torch.float32).to(memory_format=torch.channels_last)

    def features(net: ResNet, where: torch.device, dtype: torch.dtype) -> Tensor:
        batches = center_crop_batches(
            images, 46, 40, "bilinear", Normalize([0.5] * 3, [0.2] * 3),
            batch_size=8, num_workers=0, device=where, on_unreadable=lambda _: None,
        )  # fmt: skip
        with torch.no_grad():
            return torch.cat([net(pixels.to(dtype)) for _, pixels in batches])

    assert_close_to(features(found, device, torch.float32), features(exact, CPU, torch.float64), 1e-4)


def test_neighbors_and_votes(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several blocks of the bank and of the queries."""
    num_neighbors, num_classes = 20, 5
    queries, bank = directions(150, 32, 0), torch.randn(700, 32, generator=torch.Generator().manual_seed(1))
    classes = torch.arange(len(bank)) % num_classes
    monkeypatch.setattr(knn, "QUERY_BLOCK", 64)
    monkeypatch.setattr(knn, "BANK_BLOCK_BYTES", 4 * 32 * 256)
    similarity, rows = knn.neighbors(queries.to(device), bank.numpy(), num_neighbors)
    assert similarity.device.type == rows.device.type == device.type
    cosines = queries.double() @ F.normalize(bank.double(), dim=1).T
    expected, _ = cosines.topk(num_neighbors, dim=1)
    assert_close_to(similarity, expected, 1e-6)
    assert_close_to(cosines.gather(1, rows.cpu()), expected, 1e-6)  # the same rows, up to near ties
    votes, _ = knn.vote(similarity, classes.to(device)[rows], [5, num_neighbors], 0.07, num_classes)
    for predicted, k in zip(votes.cpu(), (5, num_neighbors), strict=True):
        weights = torch.exp(expected[:, :k] / 0.07)
        shares = torch.zeros(len(queries), num_classes, dtype=torch.float64)
        shares.scatter_add_(1, classes[rows.cpu()[:, :k]], weights)
        best = shares.max(dim=1).values
        assert ((best - shares.gather(1, predicted[:, None])[:, 0]) <= 1e-4 * best).all()


def assert_near_best(labels: Tensor, scores: Tensor) -> None:
    """Assert that each row's label has its highest score, up to a near tie; nearly all have the very best."""
    labels, best = labels.cpu(), scores.max(dim=1)
    assert (best.values - scores.gather(1, labels[:, None])[:, 0]).max() <= NEAR_TIE
    assert (labels == best.indices).double().mean() > 0.99


@pytest.fixture
def several_blocks(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clustering.BLOCK_SCORES, device.type, 1000)


@pytest.mark.usefixtures("several_blocks")
def test_kmeans_labels_and_centroids(device: torch.device) -> None:
    rows = F.normalize(directions(12, 16, 0)[torch.arange(600) % 12] + 0.3 * directions(600, 16, 1), dim=1)
    centroids, labels = spherical_kmeans(rows.to(device), rows[:12].to(device), 10)
    expected, exact_labels = spherical_kmeans(rows.double(), rows[:12].double(), 10)
    assert torch.equal(labels.cpu(), exact_labels)
    assert_close_to(centroids, expected, 1e-5)
    assert_near_best(nearest_centroids(rows.to(device), centroids), rows.double() @ expected.T)


@pytest.mark.usefixtures("several_blocks")
def test_balanced_labels(device: torch.device) -> None:
    rows, prototypes = directions(600, 16, 0), directions(12, 16, 1)
    labels = balanced_labels(rows.to(device), prototypes.to(device), len(rows), 0.05, 1e-5, 3000)
    exact = torch.exp((rows.double() @ prototypes.double().T - 1) / 0.05)
    for _ in range(3000):
        exact /= exact.sum(dim=0)
        exact /= exact.sum(dim=1, keepdim=True)
    assert_near_best(labels, exact.log() * 0.05)
