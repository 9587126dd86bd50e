"""MoCo's loss against its formula; the key encoder, the queue and its pointer."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.moco import NOT_SHUFFLED, Moco, MocoConfig, info_nce_loss
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.batchnorm import BatchNormGroups, convert_batchnorm
from reproduce.errors import UserError

NO_LABELS = torch.zeros(0)


def started(head_hidden_dim: int | None = 16, **changes: float) -> Moco:
    """A queue of three batches of four."""
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, head_hidden_dim, 8, head_batchnorm=False, blocks=(1, 1, 1, 1))
    values = {"queue_length": 12, "momentum": 0.9, "temperature": 0.2, **changes}
    method = Moco(MocoConfig("moco", **values), net, 8, 4)  # type: ignore[arg-type]
    method.on_train_start(net, StepSampler(8, 4, epochs=2, seed=0), [])
    return method


def crops(num: int = 2) -> list[Tensor]:
    return [torch.randn(4, 3, 32, 32) for _ in range(num)]


def test_loss_is_cross_entropy_of_own_key_against_queue() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.randn(5, 6, generator=draw), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(9, 6, generator=draw), dim=1)
    losses = []
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(float(query @ key) / 0.2)
        losses.append(-math.log(own / (own + sum(math.exp(float(query @ old) / 0.2) for old in queue))))
    assert info_nce_loss(queries, keys, queue, 0.2).item() == pytest.approx(sum(losses) / 5, rel=1e-6)
    lifted = info_nce_loss(queries.bfloat16(), keys, queue, 0.01)
    torch.testing.assert_close(lifted, info_nce_loss(queries.bfloat16().float(), keys, queue, 0.01))


def test_key_encoder_follows_by_momentum_without_gradient() -> None:
    method = started()
    optimizer = torch.optim.SGD(method.net.parameters(), lr=1.0)
    followed = {name: value.clone() for name, value in method.net.named_parameters()}
    for step in range(3):
        for name, value in method.net.named_parameters():
            followed[name] = 0.9 * followed[name] + 0.1 * value.detach()
        trained_on = method.before_step(step, crops(), NO_LABELS)
        for name, value in method.key_encoder.named_parameters():
            torch.testing.assert_close(value, followed[name])
        embeddings, _ = method.net(trained_on)
        loss, _ = method.loss(embeddings, None, 1, step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        assert all(value.grad is None for value in method.key_encoder.parameters())
        assert all(value.grad is not None for value in method.net.parameters())


def test_new_keys_replace_the_oldest() -> None:
    method = started()
    at_first = method.queue.clone()
    torch.testing.assert_close(at_first.norm(dim=1), torch.ones(12))
    pushed = []
    for step in range(4):
        views = crops()
        assert method.before_step(step, views, NO_LABELS)[0] is views[0]
        torch.testing.assert_close(method.keys, method.key_encoder(views[1:])[0])
        pushed.append(method.keys.clone())
        method.after_backward(step)
        if step == 0:
            assert torch.equal(method.queue, torch.cat([pushed[0], at_first[4:]]))
    assert torch.equal(method.queue, torch.cat([pushed[3], pushed[1], pushed[2]]))
    assert method.pointer == 4


def test_a_head_without_a_hidden_layer_is_linear() -> None:
    net = started(head_hidden_dim=None).net
    assert [type(layer).__name__ for layer in net.projection_head] == ["Linear"]
    assert net([torch.randn(4, 3, 32, 32)])[0].shape == (4, 8)


def test_state_dict_round_trip() -> None:
    method, again = started(), started()
    for step in range(2):
        method.before_step(step, crops(), NO_LABELS)
        method.after_backward(step)
    again.load_state_dict(method.state_dict())
    assert again.pointer == 8
    assert torch.equal(again.queue, method.queue)
    ours, theirs = (one.key_encoder.state_dict() for one in (method, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_whole_batch_batchnorm_adds_a_note() -> None:
    method = started()
    assert method.note == NOT_SHUFFLED
    convert_batchnorm(method.key_encoder, BatchNormGroups(1, per_rank=2, images=2))
    method.on_train_start(method.net, StepSampler(8, 4, epochs=2, seed=0), [])
    assert method.note == ""


@pytest.mark.parametrize("queue_length", [0, 10])
def test_queue_length_must_be_a_multiple_of_the_batch(queue_length: int) -> None:
    with pytest.raises(UserError, match=rf"queue_length {queue_length} is not a multiple of batch_size 4"):
        started(queue_length=queue_length)
