"""CMC's banks and loss beside its authors', in double precision: both views, three steps, and gradients."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.cmc import Cmc, CmcConfig, CmcNet
from reproduce.data.pipeline.sampler import StepSampler
from tests.oracles.official import checkout, definitions

NUM_IMAGES, BATCH, DIM, NUM_NEGATIVES, NUM_STEPS = 20, 8, 6, 7, 3


def official(draw: Any, banks: list[Tensor]) -> tuple[nn.Module, nn.Module]:
    """The average over candidates, with its banks, and the criterion; its epsilon of 1e-7 beside probabilities is 0."""
    folder = checkout("cmc", "NCE/NCEAverage.py") / "NCE"
    code = definitions(
        folder / "NCEAverage.py", "NCEAverage", torch=torch, nn=nn, math=math, print=lambda *_: None,
        AliasMethod=lambda _: SimpleNamespace(draw=draw, cuda=lambda: None),
    )  # fmt: skip
    criterion = definitions(folder / "NCECriterion.py", "NCECriterion", torch=torch, nn=nn, eps=0)
    average = code["NCEAverage"](DIM, NUM_IMAGES, NUM_NEGATIVES, 0.07, 0.5).double()
    average.params = average.params.double()
    average.params[1] = 0.07  # in double precision
    for bank, rows in zip((average.memory_l, average.memory_ab), banks, strict=True):
        bank.copy_(rows)
    return average, criterion["NCECriterion"](NUM_IMAGES)


def test_losses_gradients_and_banks_are_equal() -> None:
    torch.manual_seed(0)
    method = Cmc(
        CmcConfig("cmc", NUM_NEGATIVES, 0.07, 0.5), CmcNet(0.0625, DIM, (1, 1, 1, 1)).double(), NUM_IMAGES, BATCH
    )
    sampler = StepSampler(NUM_IMAGES, BATCH, 2, 5, 0)
    method.on_train_start(nn.Identity(), sampler, [])
    waiting: list[Tensor] = []
    average, criterion = official(lambda _: waiting.pop().flatten().clone(), [bank.rows for bank in method.banks])
    for step in range(NUM_STEPS):
        images: np.ndarray = sampler.indices_at(step)
        waiting.append(method.banks[0].draw((5, step), images, NUM_NEGATIVES))
        ours = F.normalize(torch.randn(2 * BATCH, DIM).double(), dim=1).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        both = average(*theirs.chunk(2), torch.from_numpy(images))
        expected = sum(criterion(each) for each in both)
        loss, _ = method.loss(ours, None, 1, step)
        torch.testing.assert_close(loss, expected.squeeze(), rtol=1e-10, atol=1e-12)
        (gradient,), (expected_gradient,) = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
        for bank, rows in zip(method.banks, (average.memory_l, average.memory_ab), strict=True):
            torch.testing.assert_close(bank.rows, rows, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("view", [0, 1])
def test_a_view_is_compared_with_the_bank_of_the_other(view: int) -> None:
    """Without the official code: one view's loss does not change with its own bank."""
    torch.manual_seed(0)
    losses: list[tuple[Tensor, ...]] = []
    for _ in range(2):
        torch.manual_seed(0)
        net = CmcNet(0.0625, DIM, (1, 1, 1, 1))
        method = Cmc(CmcConfig("cmc", NUM_NEGATIVES, 0.07, 0.5), net, NUM_IMAGES, BATCH)
        method.on_train_start(net, StepSampler(NUM_IMAGES, BATCH, 2, 5, 0), [])
        embeddings = F.normalize(torch.randn(2 * BATCH, DIM), dim=1).requires_grad_()
        if losses:
            method.banks[view].rows.neg_()
        losses.append(torch.autograd.grad(method.loss(embeddings, None, 1, 1)[0], embeddings)[0].chunk(2))
    first, second = losses
    assert torch.equal(first[view], second[view])
    assert not torch.allclose(first[1 - view], second[1 - view])
