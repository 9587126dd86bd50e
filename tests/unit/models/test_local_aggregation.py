"""Local Aggregation: its loss written out, and clusters of the bank with each epoch after NPID's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.local_aggregation import LocalAggregation, LocalAggregationConfig, local_aggregation_loss
from models.methods.memory_bank import nce_loss
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import UserError

NO_LABELS = torch.zeros(0)


def started(**changes: float) -> LocalAggregation:
    """A method whose clusters begin with the second epoch, of three steps each."""
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, None, 8, blocks=(1, 1, 1, 1))
    values = {
        "num_negatives": 5, "temperature": 0.1, "bank_momentum": 0.5, "num_neighbors": 6, "num_clusters": 4,
        "num_clusterings": 2, "num_kmeans_iterations": 5, "warmup_epochs": 1,
    }  # fmt: skip
    config = LocalAggregationConfig("local_aggregation", **{**values, **changes})  # type: ignore[arg-type]
    method = LocalAggregation(config, net, 13, 4)
    method.on_train_start(net, StepSampler(13, 4, epochs=3, seed=0), [])
    return method


def crop() -> list[Tensor]:
    return [torch.randn(4, 3, 32, 32)]


def test_loss_is_the_share_of_close_neighbors() -> None:
    draw = torch.Generator().manual_seed(0)
    embeddings, bank = (F.normalize(torch.randn(num, 6, generator=draw), dim=1) for num in (3, 12))
    labels = torch.randint(4, (2, 12), generator=draw)
    own = torch.cat([labels[:, :2], torch.full((2, 1), 9)], dim=1)  # no row is in the third image's clusters
    losses = []
    for image, embedding in enumerate(embeddings):
        odds = {row: math.exp(float(embedding @ bank[row]) / 0.1) for row in range(12)}
        background = sorted(odds, key=lambda row: odds[row])[-5:]
        close = [row for row in background if any(labels[each, row] == own[each, image] for each in range(2))]
        share = sum(odds[row] for row in close) / sum(odds[row] for row in background)
        losses.append(-math.log(share + 1e-7))
    assert losses[2] == pytest.approx(-math.log(1e-7))
    found = local_aggregation_loss(embeddings, bank, own, labels, 5, 0.1)
    assert found.item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_the_bank_is_clustered_with_each_epoch_after_those_of_npid() -> None:
    method = started()
    assert method.loss_jump_step == 3
    assert float(method.log_z) == pytest.approx(math.log(2876934.2 / 1281167 * 13))
    net = MultiCropNet(0.0625, None, 8, blocks=(1, 1, 1, 1))
    for step in range(7):
        before, bank = method.labels.clone(), method.bank.rows.clone()
        embeddings, _ = net(method.before_step(step, crop(), NO_LABELS))
        assert torch.equal(method.labels, before) == (step not in (3, 6))
        images = torch.from_numpy(method.sampler.indices_at(step))
        if step < 3:
            expected = nce_loss(method.logits(embeddings, step, 0), method.log_z, 13)
        else:
            expected = local_aggregation_loss(embeddings, bank, method.labels[:, images], method.labels, 6, 0.1)
        loss, _ = method.loss(embeddings, None, 1, step)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert torch.equal(method.bank.rows, bank)
        method.after_backward(step)
        torch.testing.assert_close(method.bank.rows[images], F.normalize(bank[images] + embeddings.detach(), dim=1))
    assert method.labels[0].tolist() != method.labels[1].tolist()
    assert int(method.labels.max()) == 3


def test_state_dict_round_trip() -> None:
    method, again = started(), started()
    method.before_step(3, crop(), NO_LABELS)
    method.bank.rows.roll(1, 0)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.labels, method.labels)
    assert torch.equal(again.bank.rows, method.bank.rows)


def test_wrong_sizes_raise() -> None:
    for changes in ({"num_clusters": 14}, {"num_neighbors": 14}):
        with pytest.raises(UserError, match="should be at most the 13 images"):
            started(**changes)
