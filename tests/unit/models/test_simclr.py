"""A.8's loss against its formula, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.simclr import contrastive_loss


def embeddings(num_crops: int, batch: int) -> Tensor:
    rows = torch.randn(num_crops * batch, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.normalize(rows, dim=1)


def test_two_crops_equal_nt_xent() -> None:
    z = embeddings(2, 5)
    losses = []
    for anchor in range(10):
        others = [other for other in range(10) if other != anchor]
        losses.append(F.cross_entropy(z[others] @ z[anchor] / 0.1, torch.tensor(others.index((anchor + 5) % 10))))
    torch.testing.assert_close(contrastive_loss(z, 2, 0.1), torch.stack(losses).mean())


@pytest.mark.parametrize("num_crops", [3, 6])
def test_many_crops_average_over_anchors_and_positives(num_crops: int) -> None:
    batch = 4
    z = embeddings(num_crops, batch)
    closeness = torch.exp(z @ z.T / 0.2)
    losses = []
    for anchor in range(num_crops * batch):
        image = anchor % batch
        negatives = sum(closeness[anchor, other] for other in range(num_crops * batch) if other % batch != image)
        positives = [closeness[anchor, other] for other in range(image, num_crops * batch, batch) if other != anchor]
        losses += [-torch.log(positive / (positive + negatives)) for positive in positives]
    assert len(losses) == num_crops * batch * (num_crops - 1)
    torch.testing.assert_close(contrastive_loss(z, num_crops, 0.2), torch.stack(losses).mean())


def test_half_precision_is_cast_before_the_exponential() -> None:
    z = embeddings(2, 8)
    half = contrastive_loss(z.bfloat16(), 2, 0.01)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), contrastive_loss(z.bfloat16().double(), 2, 0.01), rtol=1e-5, atol=0)
