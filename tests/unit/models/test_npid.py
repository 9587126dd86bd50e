"""The memory bank and the noise-contrastive loss against their formulas; PIRL's heads and its patches' place."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.memory_bank import InstanceBank, log_normalizer, nce_loss, nce_uniform_loss
from models.methods.npid import Npid, NpidConfig
from models.methods.pirl import PirlNet
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import UserError

NUM_IMAGES, BATCH = 12, 4


def units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double(), dim=-1)


def started(**changes: float) -> Npid:
    torch.manual_seed(0)
    net = MultiCropNet(0.0625, None, 8, blocks=(1, 1, 1, 1))
    values: dict[str, Any] = {"num_negatives": 5, "temperature": 0.1, "bank_momentum": 0.5, **changes}
    method = Npid(NpidConfig("npid", **values), net, NUM_IMAGES, BATCH)
    method.on_train_start(net, StepSampler(NUM_IMAGES, BATCH, epochs=2, seed=0), [])
    return method


def test_loss_is_that_of_telling_data_from_noise() -> None:
    """Wu et al. 2018, equations 5 to 7, written out."""
    logits, log_z = units(3, 8) / 0.1, torch.tensor(4.0).double()
    noise = 7 / NUM_IMAGES
    losses = [
        -math.log(row[0] / (row[0] + noise)) - sum(math.log(noise / (p + noise)) for p in row[1:])
        for row in torch.exp(logits - log_z)
    ]
    assert nce_loss(logits, log_z, NUM_IMAGES).item() == pytest.approx(sum(losses) / 3, rel=1e-12)


def test_odds_that_no_float_holds_have_a_loss() -> None:
    assert nce_loss(torch.tensor([[-200.0, 200.0]]), torch.tensor(0.0), 2).item() == pytest.approx(400, rel=0.01)


def test_normalizer_is_the_mean_over_candidates_times_the_images() -> None:
    logits = units(3, 8) / 0.1
    assert log_normalizer(logits, 1000).exp().item() == pytest.approx(1000 * float(logits.exp().mean()))


@pytest.mark.parametrize("num_negatives", [1, 8, 4096])
def test_uniform_loss_is_the_least_of_equal_predictions(num_negatives: int) -> None:
    log_z = torch.linspace(-2, 2, 401).double() + math.log(NUM_IMAGES)
    losses = [nce_loss(torch.zeros(1, 1 + num_negatives).double(), each, NUM_IMAGES).item() for each in log_z]
    assert min(losses) == losses[200] == pytest.approx(nce_uniform_loss(num_negatives), rel=1e-9)


def test_noise_depends_on_seed_and_image_alone() -> None:
    bank = InstanceBank(100, 8, 0.5, torch.zeros(8))
    drawn = bank.draw((3, 7), np.array([5, 50, 99]), 1000)
    assert drawn[:, 0].tolist() == [5, 50, 99]
    assert torch.equal(bank.draw((3, 7), np.array([99]), 1000)[0], drawn[2])
    assert not torch.equal(bank.draw((3, 8), np.array([99]), 1000)[0], drawn[2])
    counts = torch.bincount(drawn[:, 1:].flatten(), minlength=100)
    assert counts.min() > 5 and counts.max() < 70  # 30 expected, with a deviation of 5.5: the image itself, too


def test_only_the_rows_of_the_batch_move_towards_their_embeddings() -> None:
    bank = InstanceBank(NUM_IMAGES, 8, 0.75, torch.zeros(8).double())
    before, images, new = bank.rows.clone(), torch.tensor([7, 2]), units(2, 8)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(NUM_IMAGES).double())
    bank.update(images, new)
    moved = 0.75 * before[images] + 0.25 * new
    torch.testing.assert_close(bank.rows[images], moved / moved.norm(dim=1, keepdim=True))
    others = torch.arange(NUM_IMAGES)[~torch.isin(torch.arange(NUM_IMAGES), images)]
    assert torch.equal(bank.rows[others], before[others])


def test_images_are_compared_with_the_bank_of_before_the_step() -> None:
    method = started()
    before, embeddings = method.bank.rows.clone(), F.normalize(torch.randn(BATCH, 8), dim=1)
    loss, _ = method.loss(embeddings, None, 1, 0)
    images = method.sampler.indices_at(0)
    candidates = method.bank.draw((0, 0, 0), images, 5)
    logits = torch.einsum("bd,bkd->bk", embeddings, before[candidates]) / 0.1
    torch.testing.assert_close(loss, nce_loss(logits, method.log_z, NUM_IMAGES))
    assert not torch.equal(method.bank.rows[images], before[images])
    first = method.log_z.clone()
    method.loss(embeddings, None, 1, 1)
    assert method.log_z == first == log_normalizer(logits, NUM_IMAGES)


def test_state_dict_round_trip() -> None:
    method, again = started(), started()
    for step in range(2):
        method.loss(F.normalize(torch.randn(BATCH, 8), dim=1), None, 1, step)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.bank.rows, method.bank.rows) and again.log_z == method.log_z != 0


def test_no_negatives_raise() -> None:
    with pytest.raises(UserError, match="num_negatives"):
        started(num_negatives=0)


def test_patches_of_an_image_are_embedded_together() -> None:
    """Each passes the trunk and its head; the image's are concatenated in order."""
    torch.manual_seed(0)
    net = PirlNet(0.0625, 8, num_patches=4, blocks=(1, 1, 1, 1)).eval()
    image, patches = torch.randn(3, 3, 40, 40), [torch.randn(3, 3, 20, 20) for _ in range(4)]
    embeddings, scores = net([image, *patches])
    assert scores is None
    each = [net.patch_head(net.pooled_features(patch)) for patch in patches]
    jigsaws = [net.jigsaw_head(torch.cat([patch[number] for patch in each])) for number in range(3)]
    expected = [*net.projection_head(net.pooled_features(image)), *jigsaws]
    torch.testing.assert_close(embeddings, F.normalize(torch.stack(expected), dim=1), rtol=1e-4, atol=1e-5)
