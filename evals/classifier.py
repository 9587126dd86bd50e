"""Training of a classifier on images in classes: linear evaluation and finetuning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.context import CenterCropConfig, EvalContext
from evals.features import center_crops
from reproduce.config.schema import Augment, Crops, View
from reproduce.data.datasets.image_folder import ImageList
from reproduce.data.pipeline.dataloader import multicrop_batches
from reproduce.data.pipeline.sampler import StepSampler, epoch_order_for
from reproduce.engine.batchnorm import wrap_for_distributed
from reproduce.engine.checkpoint import Stateful
from reproduce.engine.distributed.collectives import all_reduce_sum, device, rank, world_size
from reproduce.engine.loop import StepLogger, StepOutput, Trainer, TrainTask, build_nan_guard, resume
from reproduce.engine.precision import autocast, loss_scaler
from reproduce.errors import UserError

CROP_SCALE = [0.08, 1.0]
"""RandomResizedCrop's default share of the image's area."""
FLIP_ONLY = Augment(0.5, [0.0, 0.0, 0.0, 0.0], 0.0, 0.0, 0.0, [0.0, 0.0])
ACCURACIES = ("top1", "top5")


class EpochAccuracies:
    """Accuracies of the last epoch, and of the epoch with the best top-1. Part of the run's checkpoints."""

    def __init__(self) -> None:
        self.last = dict.fromkeys(ACCURACIES, 0.0)
        self.best: dict[str, float] | None = None

    def update(self, accuracies: dict[str, float]) -> None:
        """Add the accuracies of one epoch."""
        self.last = accuracies
        self.best = max(self.best or accuracies, accuracies, key=lambda each: each["top1"])

    def state_dict(self) -> dict[str, Any]:
        """Return both epochs' accuracies."""
        return {"last": self.last, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self.last, self.best = state["last"], state["best"]


class ClassifierTask(TrainTask[tuple[list[Tensor], Tensor]]):
    """Cross-entropy on random crops and flips; accuracy on center crops after every epoch."""

    def __init__(
        self,
        net: nn.Module,
        net_on_all_ranks: nn.Module,
        val: ImageList,
        crop: CenterCropConfig,
        accuracies: EpochAccuracies,
        context: EvalContext,
        sampler: StepSampler,
    ) -> None:
        self.net, self.net_on_all_ranks = net, net_on_all_ranks
        self.val, self.crop, self.accuracies, self.context = val, crop, accuracies, context
        self.sampler, self.validate_every_steps = sampler, sampler.steps_per_epoch
        net_on_all_ranks.train()

    def forward(self, batch: tuple[list[Tensor], Tensor], step: int) -> StepOutput:
        """Compute this rank's share of the cross-entropy, whose mean over ranks is that of the step's images."""
        (images,), labels = batch
        with autocast(self.context.cfg.precision):
            logits = self.net_on_all_ranks(images)
            loss = F.cross_entropy(logits, labels)
        share = len(labels) * world_size() / len(self.sampler.batch_at(step))  # 1, but for an epoch's last batch
        return StepOutput(loss * share, tensors={"logits": logits})

    def validate(self, num_steps_done: int) -> dict[str, float]:  # noqa: ARG002
        """Return top-1 and top-5 on the validation set."""
        self.accuracies.update(accuracy(self.net, self.val, self.crop, self.context))
        self.net_on_all_ranks.train()
        return self.accuracies.last


@dataclass(frozen=True)
class ClassifierTraining:
    """What `train_classifier` trains, and how."""

    net: nn.Module
    """Images `(N, 3, H, W)` to logits `(N, num_classes)`."""
    checkpoint_state: Mapping[str, Stateful]
    """The parts of `net` that training changes, by their names in the run's checkpoints."""
    optimizer: torch.optim.Optimizer
    learning_rates: Callable[[int], Sequence[float]]
    """The rates of an epoch, one per parameter group."""
    lr_keys: str
    """The config's keys of these rates, for errors."""
    epochs: int
    batch_size: int
    """Of all ranks together."""
    crop: CenterCropConfig


def train_classifier(
    training: ClassifierTraining, train: ImageList, val: ImageList, context: EvalContext
) -> dict[str, float]:
    """Train a network on random crops and flips, and validate it on center crops after every epoch.

    BatchNorm that trains is synchronized over ranks. Resumes from the run's last checkpoint.
    Returns in percent `top1` and `top5` of the last epoch, and `top1_best` and `top5_best` of the epoch with the best
    top-1 on the validation set, which is what the released code reports.
    """
    run, cfg = context.run, context.cfg
    net, optimizer, batch_size, crop = training.net, training.optimizer, training.batch_size, training.crop
    accuracies, scaler = EpochAccuracies(), loss_scaler(cfg.precision)
    checkpoints, first_step = resume(
        run, training.lr_keys, **training.checkpoint_state, scores=accuracies, optimizer=optimizer, scaler=scaler
    )
    sampler = StepSampler(
        len(train),
        batch_size,
        training.epochs,
        cfg.seed,
        first_step,
        rank(),
        world_size(),
        order=epoch_order_for(train, batch_size),
        drop_last=False,
    )
    steps_per_epoch = sampler.steps_per_epoch
    batches = multicrop_batches(
        train,
        Crops("one", [View(1, crop.crop_px, CROP_SCALE)], FLIP_ONLY),
        context.normalize,
        sampler,
        num_workers=cfg.cluster.num_workers,
        device=device(),
        on_unreadable=run.handle_unreadable_images,
    )
    run.first_steps.watch(net, first_step, sampler.batch_at)
    trainer = Trainer(
        task=ClassifierTask(net, wrap_for_distributed(net), val, crop, accuracies, context, sampler),
        optimizer=optimizer,
        learning_rates=lambda step: training.learning_rates(step // steps_per_epoch),
        scaler=scaler,
        guard=build_nan_guard(run, training.lr_keys),
        recorder=run.first_steps,
        logger=StepLogger(run.metrics.log, cfg.logging.every_steps, batch_size),
        checkpoints=checkpoints,
        preemption=context.preemption,
    )
    trainer.train(batches, first_step, training.epochs * steps_per_epoch)
    best = accuracies.best or accuracies.last
    return accuracies.last | {f"{name}_best": value for name, value in best.items()}


@torch.no_grad()
def accuracy(net: nn.Module, val: ImageList, crop: CenterCropConfig, context: EvalContext) -> dict[str, float]:
    """Return top-1 and top-5 in percent on center crops, which the ranks share. A collective; leaves eval mode on."""
    net.eval()
    share = val.subset(val.reading_order()[rank() :: world_size()].tolist())
    labels = torch.tensor(share.labels, device=device())
    counts = torch.zeros(3, device=device())
    for index, images in center_crops(share, crop, context, context.run.handle_unreadable_images):
        with autocast(context.cfg.precision):
            logits = net(images)
        counts[:2] += topk_correct(logits, labels[index.to(device())])
        counts[2] += len(index)
    all_reduce_sum(counts)
    total = int(counts[2].item())
    if not total:
        folder = context.root / context.dataset.val
        raise UserError(f"none of the {len(val)} validation images of {folder} can be decoded")
    context.run.counts["num_test_images"] = total
    return dict(zip(ACCURACIES, (counts[:2] / total * 100).tolist(), strict=True))


def topk_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count how many labels `(n,)` are the first, and among the first five, of `logits (n, classes)`: `(2,)`."""
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    correct = top5 == labels.unsqueeze(1)
    return torch.stack([correct[:, 0].sum(), correct.sum()]).float()
