"""Training of classifiers: an epoch's last batch is kept, and its loss counts though ranks may share it unevenly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evals import classifier
from evals.classifier import ClassifierTask, EpochAccuracies
from reproduce import evaluate, pretrain
from reproduce.data.pipeline.sampler import StepSampler
from tests.runs import TINY, Uninterrupted, call, curve


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


def test_the_best_epoch_is_that_of_the_best_top1() -> None:
    """Whatever its top-5; of equal ones the first."""
    accuracies = EpochAccuracies()
    for top1, top5 in ((50.0, 90.0), (60.0, 80.0), (60.0, 99.0), (55.0, 95.0)):
        accuracies.update({"top1": top1, "top5": top5})
    assert accuracies.best == {"top1": 60.0, "top5": 80.0}
    assert accuracies.last == {"top1": 55.0, "top5": 95.0}


def test_the_best_of_epochs_without_a_hit_is_the_first() -> None:
    accuracies = EpochAccuracies()
    for top5 in (40.0, 30.0):
        accuracies.update({"top1": 0.0, "top5": top5})
    assert accuracies.best == {"top1": 0.0, "top5": 40.0}


@pytest.mark.parametrize("name", ["linear_imagenet", "semisup_1pct"])
def test_an_epoch_ends_with_its_incomplete_batch(
    name: str, uninterrupted: Uninterrupted, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the released code: 20 images in batches of 8 are 3 steps, not 2."""
    (trunk,) = uninterrupted(pretrain.main, *TINY, "experiment=random").glob("smoke/random-*/checkpoint.pt")
    size = ("protocol.batch_size=8", "protocol.base_batch_size=8", "protocol.epochs=2", "logging.every_steps=1")
    asked = (f"eval={name}", f"checkpoint={trunk}", f"paths.data_root={data}", *size)
    common = ("cluster.num_workers=0", "logging.wandb=false", f"paths.results={tmp_path}")
    status, said = call(evaluate.main, monkeypatch, *asked, *common)
    assert status == 0, said
    points = [point for point in curve(tmp_path) if "loss" in point]
    assert [point["step"] for point in points] == [1, 2, 3, 4, 5, 6]
    first, *rates = (point["lr"] for point in points)
    later = first / 2 if name == "linear_imagenet" else first  # a cosine; the other's first milestone lies beyond
    assert rates == pytest.approx([first, first, later, later, later])
