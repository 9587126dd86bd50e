"""PCL: temperatures and ProtoNCE written out, clusters of each epoch, negatives that no image of the batch has."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.clustering import IGNORE_LABEL
from models.methods.moco import info_nce_loss
from models.methods.pcl import Pcl, PclConfig, Prototypes, cluster_temperatures, proto_nce_loss
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import UserError

NO_LABELS = torch.zeros(0)
NUM_IMAGES, BATCH = 25, 4
UNREADABLE = 7


def started(**changes: object) -> Pcl:
    """A method whose clusters begin with the second epoch, of six steps each."""
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, None, 8, blocks=(1, 1, 1, 1))
    values = {
        "queue_length": 12, "momentum": 0.9, "temperature": 0.2, "num_clusters": [9, 12], "num_negative_prototypes": 3,
        "warmup_epochs": 1, "num_kmeans_iterations": 5, "num_kmeans_restarts": 2, "resize_px": 36, "size_px": 32,
    }  # fmt: skip
    method = Pcl(PclConfig("pcl", **{**values, **changes}), net, NUM_IMAGES, BATCH)  # type: ignore[arg-type]
    images = torch.randn(NUM_IMAGES, 3, 32, 32)
    read = torch.tensor([index for index in range(NUM_IMAGES) if index != UNREADABLE])

    def center_crops(resize_px: int, size_px: int) -> list[tuple[Tensor, Tensor]]:
        assert (resize_px, size_px) == (36, 32)
        return [(part, images[part]) for part in read.split(10)]

    method.center_crops = center_crops
    method.on_train_start(net, StepSampler(NUM_IMAGES, BATCH, epochs=3, seed=0), [])
    return method


def crops() -> list[Tensor]:
    return [torch.randn(BATCH, 3, 32, 32) for _ in range(2)]


def test_temperatures_are_scaled_concentrations() -> None:
    """Of five clusters, one has a single row and one none; extremes are clamped to the quantiles .1 and .9."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    distances = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.7, 0.5, 0.4, 0.2])
    phi = [0.2 / math.log(13), 0.8 / math.log(12), 0.8 / math.log(12), 0.3 / math.log(12), 0.8 / math.log(12)]
    low = sorted(phi)[0] + 0.4 * (sorted(phi)[1] - sorted(phi)[0])
    phi = [max(each, low) for each in phi]
    expected = torch.tensor(phi) * 0.2 * 5 / sum(phi)
    torch.testing.assert_close(cluster_temperatures(labels, distances, 5, 0.2), expected)


def test_equal_images_have_the_methods_temperature() -> None:
    assert cluster_temperatures(torch.zeros(4).long(), torch.zeros(4), 3, 0.2).tolist() == pytest.approx([0.2] * 3)


def test_proto_nce_is_cross_entropy_of_the_own_prototype() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, centroids = (F.normalize(torch.randn(num, 6, generator=draw), dim=1) for num in (3, 9))
    prototypes = Prototypes(centroids, torch.rand(9, generator=draw) + 0.1, torch.tensor([4, 1, 1, IGNORE_LABEL, 8, 0]))
    images, negatives = torch.tensor([5, 3, 0, 2, 1, 4]), torch.tensor([2, 7])
    compared = [0, 0, 4, 1, 1, 8, 2, 7]  # the batch's own, of which the unreadable image's stands for nothing
    losses = []
    for query, image in zip(queries, (3, 0, 2), strict=True):  # the second rank's
        if image == 3:
            continue
        odds = [math.exp(float(query @ centroids[each]) / float(prototypes.temperatures[each])) for each in compared]
        losses.append(-math.log(odds[images.tolist().index(image)] / sum(odds)))
    found = proto_nce_loss(queries, prototypes, images, slice(1, 4), negatives)
    assert found.item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_clusters_of_all_images_are_made_anew_with_each_epoch_after_the_warmup() -> None:
    method = started()
    assert method.loss_jump_step == 6
    for step in range(13):
        before = method.clusterings
        views = method.before_step(step, crops(), NO_LABELS)
        assert (method.clusterings is not before) == (step in (6, 12))
        embeddings, _ = method.net(views)
        loss, watched = method.loss(embeddings, None, 1, step)
        alone = info_nce_loss(embeddings, method.keys, method.queue, 0.2)
        torch.testing.assert_close(loss, alone + watched["prototype_loss"])
        assert (watched["prototype_loss"] > 0) == (step >= 6)
    assert [len(each.centroids) for each in method.clusterings] == [9, 12]
    for each in method.clusterings:
        assert each.labels[UNREADABLE] == IGNORE_LABEL
        assert (each.labels == IGNORE_LABEL).sum() == 1
        torch.testing.assert_close(each.centroids.norm(dim=1), torch.ones(len(each.centroids)))
        assert float(each.temperatures.mean()) == pytest.approx(0.2)
    assert method.key_encoder.training


def test_negatives_are_clusters_of_no_image_of_the_batch() -> None:
    method = started()
    method.before_step(6, crops(), NO_LABELS)
    for step in range(6, 12):
        images = torch.from_numpy(method.sampler.batch_at(step))
        for level, each in enumerate(method.clusterings):
            negatives = method._draw_negatives(each, images, (step, level))
            assert len(set(negatives.tolist())) == 3
            assert not set(negatives.tolist()) & set(each.labels[images].tolist())


def test_state_dict_round_trip() -> None:
    method, again = started(), started()
    method.before_step(6, crops(), NO_LABELS)
    again.load_state_dict(method.state_dict())
    for ours, theirs in zip(method.clusterings, again.clusterings, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("num_clusters", [[6, 12], [9, 26]])
def test_clusters_have_to_suffice_for_the_negatives_and_images_for_the_clusters(num_clusters: list[int]) -> None:
    with pytest.raises(UserError, match=r"method\.num_clusters .* at most the 25 images, and at least"):
        started(num_clusters=num_clusters)
