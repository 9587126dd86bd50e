"""k-means and equal assignments against scikit-learn and a dense oracle; the banks and labels of DeepCluster-v2."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from models.methods import clustering
from models.methods.deepcluster import DeepCluster, DeepClusterConfig, spherical_kmeans
from models.methods.sela import balanced_labels
from models.methods.sinkhorn import sinkhorn
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import TrainingFailed, UserError

NO_LABELS = torch.zeros(0)


def directions(num: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Unit vectors around four corners."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.eye(6)[torch.randint(4, (num,), generator=draw)]
    return F.normalize(corners + spread * torch.randn(num, 6, generator=draw), dim=1)


def config(**changes: object) -> DeepClusterConfig:
    values = {
        "name": "deepcluster_v2", "num_prototypes": 4, "num_heads": 3, "num_banks": 2, "temperature": 0.1,
        "num_kmeans_iterations": 5,
    }  # fmt: skip
    return DeepClusterConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(params=[2**20, 40])
def any_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, and ten of them."""
    monkeypatch.setitem(clustering.BLOCK_SCORES, "cpu", request.param)


@pytest.mark.usefixtures("any_block")
def test_kmeans_equals_scikit_learn() -> None:
    """Of well separated clusters the optimum on the sphere and in space is the same partition."""
    rows = directions(200, spread=0.15)
    centroids, labels = spherical_kmeans(rows, torch.eye(6)[:4] * 0.8 + 0.1, 20)
    oracle = KMeans(4, init=np.eye(6)[:4], n_init=1).fit(rows.numpy())
    assert labels.tolist() == oracle.labels_.tolist()
    torch.testing.assert_close(centroids, F.normalize(torch.from_numpy(oracle.cluster_centers_).float(), dim=1))


def test_kmeans_objective_is_monotone_until_a_fixed_point() -> None:
    rows = directions(300)
    objectives = []
    for num_iterations in range(12):
        centroids, labels = spherical_kmeans(rows, rows[:4], num_iterations)
        objectives.append(-(rows * centroids[labels]).sum(dim=1).mean().item())
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[0] > objectives[3]
    centroids, labels = spherical_kmeans(rows, rows[:4], 200)
    for cluster, centroid in enumerate(centroids):
        torch.testing.assert_close(centroid, F.normalize(rows[labels == cluster].sum(dim=0), dim=0))


def test_an_empty_cluster_keeps_its_centroid() -> None:
    away = -torch.ones(1, 6) / 6**0.5
    rows = directions(50, spread=0.1)
    centroids, labels = spherical_kmeans(rows, torch.cat([rows[:2], away]), 3)
    assert 2 not in labels
    assert torch.equal(centroids[2:], away)


@pytest.mark.usefixtures("any_block")
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_balanced_labels_equal_dense_optimal_transport(epsilon: float) -> None:
    rows, prototypes = directions(240), directions(4, seed=1)
    dense = sinkhorn(rows @ prototypes.T, epsilon, 3000)
    assert (dense.sum(dim=0) - 60).abs().max() < 60 * 1e-3
    labels = balanced_labels(rows, prototypes, 240, epsilon, 1e-4, 3000)
    assert torch.equal(labels, dense.argmax(dim=1))
    assert not torch.equal(labels, (rows @ prototypes.T).argmax(dim=1))


def test_unconverged_assignments_raise() -> None:
    with pytest.raises(TrainingFailed, match=r"not to 0\.001, after 2 iterations: raise method\.epsilon"):
        balanced_labels(directions(240), directions(4, seed=1), 240, 0.05, 1e-3, 2)
    with pytest.raises(TrainingFailed, match="balanced to nan"):
        balanced_labels(directions(240) * torch.nan, directions(4, seed=1), 240, 0.05, 1e-3, 2)


def test_nearly_converged_assignments_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    given = directions(240), directions(4, seed=1), 240, 0.05
    labels = balanced_labels(*given, 1e-3, 50)
    assert torch.equal(labels, balanced_labels(*given, 1e-4, 3000))
    assert "not to 0.001, after" in capsys.readouterr().out


def started(num_images: int, batch_size: int, **changes: object) -> tuple[DeepCluster, MultiCropNet]:
    """A method whose banks are filled."""
    torch.manual_seed(0)
    cfg = config(**changes)
    net = MultiCropNet(0.0625, 16, 8, DeepCluster.network_prototypes(cfg), blocks=(1, 1, 1, 1))
    method = DeepCluster(cfg, net, num_images, batch_size)
    sampler = StepSampler(num_images, batch_size, epochs=2, seed=0)
    extra = ([torch.randn(batch_size, 3, 32, 32) for _ in range(3)] for _ in range(num_images // batch_size))
    method.on_train_start(net, sampler, extra)
    return method, net


def test_all_crops_of_an_image_share_its_label_per_head() -> None:
    method, net = started(22, 10)
    method.before_step(0, [], NO_LABELS)
    unseen = sorted(set(range(22)) - set(method.bank.image_indices.tolist()))
    assert len(unseen) == 2  # the incomplete batch of the extra epoch
    assert (method.labels[:, unseen] == clustering.IGNORE_LABEL).all()
    for head, prototypes in enumerate(method.heads):
        rows = method.bank.embeddings[head % 2]
        assert torch.equal(method.labels[head, method.bank.image_indices].long(), (rows @ prototypes.T).argmax(dim=1))

    (step,) = [step for step in (0, 1) if set(unseen) & set(method.sampler.indices_at(step).tolist())]
    pictures = method.sampler.indices_at(step)
    embeddings = F.normalize(torch.randn(30, 8), dim=1)
    assert net.prototypes is not None
    scores = net.prototypes(embeddings)
    losses = []
    for head, prototypes in enumerate(method.heads):
        for row, embedding in enumerate(embeddings):
            label = method.labels[head, pictures[row % 10]].long()
            if label != clustering.IGNORE_LABEL:
                losses.append(F.cross_entropy(prototypes @ embedding / 0.1, label))
    assert len(losses) == 3 * 3 * 8  # heads, crops, and the images of the batch that the bank held
    loss, watched = method.loss(embeddings, scores, 3, step)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert 1 <= watched["prototypes_used"] <= 4
    held = slice(10 * step, 10 * step + 10)
    assert torch.equal(method.bank.embeddings[:, held], embeddings[:20].unflatten(0, (2, 10)))
    assert method.bank.image_indices[held].tolist() == pictures.tolist()


def test_labels_and_centroids_change_only_between_epochs() -> None:
    method, net = started(20, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    seen = []
    for step in range(4):
        crops = [torch.randn(10, 3, 32, 32) for _ in range(2)]
        method.before_step(step, crops, NO_LABELS)
        method.before_forward()
        seen.append(([weight.clone() for weight in method.heads], method.labels.clone()))
        embeddings, scores = net(crops)
        loss, _ = method.loss(embeddings, scores, 2, step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        optimizer.step()
    for first, second, same in ((0, 1, True), (1, 2, False), (2, 3, True)):
        (before, labels), (after, later) = seen[first], seen[second]
        assert all(torch.equal(old, new) == same for old, new in zip(before, after, strict=True))
        assert torch.equal(labels, later) == same


def test_a_single_crop_per_image_works() -> None:
    method, net = started(20, 10, num_banks=1)
    method.before_step(0, [], NO_LABELS)
    embeddings, scores = net([torch.randn(10, 3, 32, 32)])
    loss, _ = method.loss(embeddings, scores, 1, step=0)
    assert loss.isfinite()
    assert method.bank.embeddings.shape == (1, 20, 8)


def test_more_prototypes_than_images_raise() -> None:
    with pytest.raises(UserError, match=r"num_prototypes 30 is more than the 20 images"):
        started(22, 10, num_prototypes=30)


def test_bank_state_dict_round_trip() -> None:
    method, _ = started(20, 10)
    method.before_step(0, [], NO_LABELS)
    again, _ = started(20, 10)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.bank.embeddings, method.bank.embeddings)
    assert torch.equal(again.bank.image_indices, method.bank.image_indices)
    assert torch.equal(again.labels, method.labels)
