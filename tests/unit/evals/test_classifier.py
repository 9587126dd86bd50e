"""Training of classifiers: the loss of an epoch's last batch, which ranks may share unevenly."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evals import classifier
from evals.classifier import ClassifierTask, EpochAccuracies
from reproduce.data.pipeline.sampler import StepSampler


@pytest.mark.parametrize("step", [0, 3])
def test_the_mean_loss_over_ranks_is_that_of_the_batchs_images(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of four batches has 3 of 27 images: two on one rank, one on the other."""
    monkeypatch.setattr(classifier, "world_size", lambda: 2)
    torch.manual_seed(0)
    images, labels, net = torch.randn(27, 5), torch.randint(0, 4, (27,)), nn.Linear(5, 4)
    context: Any = SimpleNamespace(cfg=SimpleNamespace(precision="fp32"))
    losses, everything = [], []
    for rank in range(2):
        sampler = StepSampler(27, 8, epochs=1, seed=0, rank=rank, world_size=2, drop_last=False)
        task = ClassifierTask(net, net, None, None, EpochAccuracies(), context, sampler)  # type: ignore[arg-type]
        mine = torch.from_numpy(sampler.indices_at(step))
        losses.append(task.forward(([images[mine]], labels[mine]), step).loss)
        everything += mine.tolist()
    assert len(everything) == (8 if step == 0 else 3)
    torch.testing.assert_close(sum(losses) / 2, F.cross_entropy(net(images[everything]), labels[everything]))
